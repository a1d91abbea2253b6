// Small kernels for the emulator's own tests: correct ones, and one for each kind of mistake.
#include "cuda/device.cuh"
#include "entry.h"

namespace kgrec::cuda {
namespace {

constexpr int kBlock = 128;
constexpr int kBlockWarps = kBlock / kWarp;

struct VectorParams {
  const float* x;
  float* out;
  int64_t n;
  int64_t which;  // picks the mistake, or a number of the kernel's own
};

// -- Correct kernels -------------------------------------------------------------------------

// out[block] = sum of the elements that fall to it: warp butterflies, then shared memory.
__global__ void block_sum_kernel(const VectorParams p) {
  KGREC_SHARED(float, warp_sums, kBlockWarps);
  float sum = 0;
  for (int64_t i = thread_of_grid(); i < p.n; i += threads_in_grid()) {
    sum += load(p.x + i);
  }
  sum = group_sum(sum, kWarp, kFullMask);
  if (lane_of_warp() == 0) {
    warp_sums[warp_of_block()] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0;
    for (int w = 0; w < kBlockWarps; ++w) {
      total += warp_sums[w];
    }
    store(p.out + blockIdx.x, total);
  }
}

// The same without the barrier.
__global__ void block_sum_no_barrier_kernel(const VectorParams p) {
  KGREC_SHARED(float, warp_sums, kBlockWarps);
  const float sum = group_sum(load(p.x + threadIdx.x), kWarp, kFullMask);
  if (lane_of_warp() == 0) {
    warp_sums[warp_of_block()] = sum;
  }
  if (threadIdx.x == 0) {
    float total = 0;
    for (int w = 0; w < kBlockWarps; ++w) {
      total += warp_sums[w];
    }
    store(p.out, total);
  }
}

}  // namespace
}  // namespace kgrec::cuda

namespace kgrec::cuda {

static VectorParams vector_params(cuda_host::Args& args) {
  return {args.in<float>("x"), args.out<float>("out"), args.size("x"), args.integer("which", 0)};
}

KGREC_ENTRY(block_sum) {
  const VectorParams p = vector_params(args);
  args.launcher(block_sum_kernel, static_cast<unsigned>(args.size("out")), kBlock, 0, p);
}
KGREC_ENTRY(block_sum_no_barrier) {
  args.launcher(block_sum_no_barrier_kernel, 1, kBlock, 0, vector_params(args));
}

}  // namespace kgrec::cuda
