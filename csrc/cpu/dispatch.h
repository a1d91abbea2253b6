// From run-time element types to compile-time ones.
#pragma once

#include "common/types.h"

namespace kgrec {

// Calls f with a value of the element type.
template <class F>
inline __attribute__((always_inline)) void for_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(float{});
    case DType::f64:
      return f(double{});
    case DType::bf16:
      return f(BFloat16{});
    case DType::f16:
      return f(Half{});
  }
}

}  // namespace kgrec
