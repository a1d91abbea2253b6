// Sums over the threads of a block that come before.
#pragma once

#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace kgrec::cuda {

constexpr int kBlockWarps = kBlockThreads / kWarp;

// The sum of x over the threads before this one, and over all of them; the whole block comes here.
// `warp_sums` is shared memory for kBlockWarps numbers, free again on return.
template <class A>
KGREC_DEVICE A sum_before(A x, A* warp_sums, A& total) {
  A sum = x;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const A other = __shfl_up_sync(kFullMask, sum, distance);
    sum += lane_of_warp() >= distance ? other : A{0};
  }
  if (lane_of_warp() == kWarp - 1) {
    warp_sums[warp_of_block()] = sum;
  }
  __syncthreads();
  A before = 0;
  total = 0;
#pragma unroll
  for (int warp = 0; warp < kBlockWarps; ++warp) {
    before += warp < warp_of_block() ? warp_sums[warp] : A{0};
    total += warp_sums[warp];
  }
  __syncthreads();
  return before + sum - x;
}

}  // namespace kgrec::cuda
