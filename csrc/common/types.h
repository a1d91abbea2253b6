// Element types as kernels know them, free of torch.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define KGREC_HOST_DEVICE __host__ __device__
#else
#define KGREC_HOST_DEVICE
#endif

namespace kgrec {

enum class DType : int8_t { f32, f64, bf16, f16 };

inline int64_t element_bytes(DType dtype) {
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

// That in which values of a type are added up; acc_t is the same at compile time.
inline DType accumulate(DType dtype) {
  return dtype == DType::f64 ? DType::f64 : DType::f32;
}

// Storage only: arithmetic happens after widening to float.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// The type in which values of type T are added up.
template <class T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <class T>
using acc_t = typename Accumulate<T>::type;

}  // namespace kgrec
