// Random bits on CUDA.
#pragma once

#include <cstdint>

#include "cuda/launch.h"

namespace kgrec::cuda {

struct RandomBitsParams {
  const int64_t* rng = nullptr;  // seed, step
  int64_t stream = 0;            // of random numbers
  int64_t n = 0;
  int64_t* out = nullptr;  // [n], 16-byte aligned
};

void launch_random_bits(const RandomBitsParams& params, cudaStream_t stream);

}  // namespace kgrec::cuda
