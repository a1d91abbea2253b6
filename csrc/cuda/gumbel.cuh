// Gumbel noise in kernels.
#pragma once

#include "common/philox.h"
#include "cuda/device.cuh"

namespace kgrec::cuda {

#define KGREC_GUMBEL KGREC_DEVICE
#include "common/gumbel.h"
#undef KGREC_GUMBEL

struct GumbelLane {
  static KGREC_DEVICE float product(float a, float b) { return __fmul_rn(a, b); }
  static KGREC_DEVICE float splat(float a) { return a; }
  static KGREC_DEVICE float to_float(int32_t i) { return static_cast<float>(i); }
  static KGREC_DEVICE int32_t to_int(float x) { return static_cast<int32_t>(x); }
  static KGREC_DEVICE float as_float(int32_t i) { return __int_as_float(i); }
  static KGREC_DEVICE int32_t as_int(float x) { return __float_as_int(x); }
};

// The noise of one word of Philox.
KGREC_DEVICE float gumbel_of_word(uint32_t word) {
  return gumbel<GumbelLane>(static_cast<int32_t>(word >> (32 - kUniformBits)));
}

}  // namespace kgrec::cuda
