// All that a kernel may use of a device. The .cuh files that include it are compiled twice: by nvcc
// for GPUs, and by g++ with KGREC_CUDA_HOST for the emulator of tests/cuda, which checks every
// access that goes through load, store and the shared arrays below, and every meeting of lanes.
#pragma once

#include <cstdint>

#include "common/types.h"

#ifdef KGREC_CUDA_HOST
#include "cuda_host.h"
#else
#include <cuda_runtime.h>
#endif

// KGREC_AT_CALLER ends the parameter list of a function, KGREC_PASS_CALLER the arguments of a call
// in it: so the emulator names the line in the kernel, not one in here. Nothing on a GPU.
#ifdef KGREC_CUDA_HOST
#define KGREC_DEVICE inline
#define KGREC_AT_CALLER , ::kgrec::cuda_host::Site site = ::kgrec::cuda_host::Site::here()
#define KGREC_PASS_CALLER , site
#else
#define KGREC_DEVICE __device__ __forceinline__
#define KGREC_AT_CALLER
#define KGREC_PASS_CALLER
// An array shared by the block, 16-byte aligned and not initialised. To hand it on: &name[0].
#define KGREC_SHARED(type, name, count) __shared__ __align__(16) type name[count]
// The shared memory whose size is given at launch, seen as an array of `type`.
#define KGREC_DYNAMIC_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char kgrec_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(kgrec_dynamic_shared)
#endif

namespace kgrec::cuda {

constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;
constexpr int kVectorBytes = 16;

// -- Half types ------------------------------------------------------------------------------

KGREC_DEVICE float widen(float x) {
  return x;
}
KGREC_DEVICE double widen(double x) {
  return x;
}
KGREC_DEVICE float widen(BFloat16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
KGREC_DEVICE float widen(Half x) {
  const uint32_t magnitude = (x.bits & 0x7fffu) << 13;
  // As a float this is 2^112 times too small, subnormals included: one exact multiplication.
  uint32_t bits = __float_as_uint(__uint_as_float(magnitude) * 0x1p112f);
  if (magnitude >= (0x7c00u << 13)) {
    bits |= 0x7f800000u;  // infinity or NaN
  }
  return __uint_as_float(bits | (x.bits & 0x8000u) << 16);
}

// Round to nearest, ties to even. The tag argument picks the type of the result.
KGREC_DEVICE float narrow_to(float, float x) {
  return x;
}
KGREC_DEVICE double narrow_to(double, double x) {
  return x;
}
KGREC_DEVICE BFloat16 narrow_to(BFloat16, float x) {
  const uint32_t bits = __float_as_uint(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40u;  // NaN must not round to infinity
  return {static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded)};
}
KGREC_DEVICE Half narrow_to(Half, float x) {
  const uint32_t bits = __float_as_uint(x);
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude >= 0x47800000u) {  // 65536 and more: infinity or NaN
    half = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    // Subnormal in half: the addition of 0.5 rounds to multiples of 2^-24.
    half = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return {static_cast<uint16_t>(half | ((bits >> 16) & 0x8000u))};
}
template <class T>
KGREC_DEVICE T narrow(acc_t<T> x) {
  return narrow_to(T{}, x);
}

// -- Vectors ---------------------------------------------------------------------------------

// Elements as they lie in memory, 16 bytes unless said otherwise: 4 float, 2 double, 8 of the half
// types.
template <class T, int kSize_ = kVectorBytes / sizeof(T)>
struct alignas(kSize_ * sizeof(T)) Vec {
  static constexpr int kSize = kSize_;
  T data[kSize];
  KGREC_DEVICE T& operator[](int i) { return data[i]; }
  KGREC_DEVICE const T& operator[](int i) const { return data[i]; }
};

// The same elements in the type of sums, for registers.
template <class T>
struct Wide {
  static constexpr int kSize = Vec<T>::kSize;
  acc_t<T> data[kSize];
  KGREC_DEVICE acc_t<T>& operator[](int i) { return data[i]; }
  KGREC_DEVICE const acc_t<T>& operator[](int i) const { return data[i]; }
};

template <class T>
KGREC_DEVICE Wide<T> widen(const Vec<T>& v) {
  Wide<T> wide;
#pragma unroll
  for (int i = 0; i < Vec<T>::kSize; ++i) {
    wide[i] = widen(v[i]);
  }
  return wide;
}

template <class T>
KGREC_DEVICE Vec<T> narrow(const Wide<T>& wide) {
  Vec<T> v;
#pragma unroll
  for (int i = 0; i < Vec<T>::kSize; ++i) {
    v[i] = narrow<T>(wide[i]);
  }
  return v;
}

// -- Memory ----------------------------------------------------------------------------------

// One access of a lane, at an address that is a multiple of V's alignment.
template <class V>
KGREC_DEVICE V load(const V* p KGREC_AT_CALLER) {
#ifdef KGREC_CUDA_HOST
  cuda_host::check_read(p, sizeof(V), alignof(V), site);
#endif
  return *p;
}
template <class V>
KGREC_DEVICE void store(V* p, const V& v KGREC_AT_CALLER) {
#ifdef KGREC_CUDA_HOST
  cuda_host::check_write(p, sizeof(V), alignof(V), site);
#endif
  *p = v;
}

// A vector from p on.
template <int kSize, class T>
KGREC_DEVICE Vec<T, kSize> load_elements(const T* p KGREC_AT_CALLER) {
  return load(reinterpret_cast<const Vec<T, kSize>*>(p) KGREC_PASS_CALLER);
}
template <class T>
KGREC_DEVICE Vec<T> load_vec(const T* p KGREC_AT_CALLER) {
  return load_elements<Vec<T>::kSize>(p KGREC_PASS_CALLER);
}
template <class T, int kSize>
KGREC_DEVICE void store_vec(T* p, const Vec<T, kSize>& v KGREC_AT_CALLER) {
  store(reinterpret_cast<Vec<T, kSize>*>(p), v KGREC_PASS_CALLER);
}
template <class T>
KGREC_DEVICE Wide<T> load_wide(const T* p KGREC_AT_CALLER) {
  return widen(load_vec(p KGREC_PASS_CALLER));
}
template <class T>
KGREC_DEVICE void store_wide(T* p, const Wide<T>& wide KGREC_AT_CALLER) {
  store_vec(p, narrow(wide) KGREC_PASS_CALLER);
}

// -- Lanes -----------------------------------------------------------------------------------

// Blocks have one dimension, of whole warps.
KGREC_DEVICE int lane_of_warp() {
  return static_cast<int>(threadIdx.x) % kWarp;
}
KGREC_DEVICE int warp_of_block() {
  return static_cast<int>(threadIdx.x) / kWarp;
}
KGREC_DEVICE int64_t warp_of_grid() {
  return static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + warp_of_block();
}
KGREC_DEVICE int64_t warps_in_grid() {
  return static_cast<int64_t>(gridDim.x) * (blockDim.x / kWarp);
}
KGREC_DEVICE int64_t thread_of_grid() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
KGREC_DEVICE int64_t threads_in_grid() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

// The lanes of the group that `lane` belongs to; groups are 1, 2, 4 ... 32 lanes.
KGREC_DEVICE unsigned group_mask(int lane, int group_lanes) {
  return (kFullMask >> (kWarp - group_lanes)) << (lane & ~(group_lanes - 1));
}

// Sum over each group of consecutive lanes, the same bits in all of them. `mask` names the lanes
// that make this call together: one group, several, or the warp.
template <class A>
KGREC_DEVICE A group_sum(A x, int group_lanes, unsigned mask KGREC_AT_CALLER) {
#pragma unroll
  for (int offset = group_lanes / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(mask, x, offset, kWarp KGREC_PASS_CALLER);
  }
  return x;
}

template <class A>
KGREC_DEVICE A group_max(A x, int group_lanes, unsigned mask KGREC_AT_CALLER) {
#pragma unroll
  for (int offset = group_lanes / 2; offset > 0; offset /= 2) {
    const A other = __shfl_xor_sync(mask, x, offset, kWarp KGREC_PASS_CALLER);
    x = other > x ? other : x;
  }
  return x;
}

}  // namespace kgrec::cuda
