// Small correct kernels for the emulator's own tests. Those with mistakes: emulator_mistakes.cpp.
#include "cuda/device.cuh"
#include "entry.h"

namespace kgrec::cuda {
namespace {

constexpr int kBlock = 128;
constexpr int kBlockWarps = kBlock / kWarp;

// out[b] = sum of the elements that block b comes to: warp butterflies, then shared memory.
struct SumParams {
  const float* x;
  float* out;
  int64_t n;
};

__global__ void block_sum_kernel(const SumParams p) {
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

// Sums of segments, one for each group of 8 lanes: groups of a warp go round different numbers of
// times, each alone with its own mask, and come together at the end.
struct SegmentParams {
  const int64_t* ptr;
  const double* x;
  double* out;
  int* long_segments;  // per warp: its segments of more than 8 elements
  int64_t num_segments;
};

__global__ void segment_sum_kernel(const SegmentParams p) {
  constexpr int kGroup = 8;
  const int lane = lane_of_warp();
  const unsigned mask = group_mask(lane, kGroup);
  const int64_t segment = thread_of_grid() / kGroup;
  bool is_long = false;
  if (segment < p.num_segments) {
    const int64_t begin = load(p.ptr + segment), end = load(p.ptr + segment + 1);
    double total = 0;
    for (int64_t i = begin; i < end; i += kGroup) {
      const int64_t at = i + lane % kGroup;
      total += group_sum(at < end ? load(p.x + at) : 0.0, kGroup, mask);
    }
    is_long = end - begin > kGroup;
    if (lane % kGroup == 0) {
      store(p.out + segment, total);
    }
  }
  __syncwarp();
  const unsigned ballot = __ballot_sync(kFullMask, is_long && lane % kGroup == 0);
  if (lane == 0) {
    store(p.long_segments + warp_of_grid(), __popc(ballot));
  }
}

// Inclusive sums within each warp.
struct ScanParams {
  const int* x;
  int* out;
};

__global__ void warp_scan_kernel(const ScanParams p) {
  int x = load(p.x + thread_of_grid());
  for (int delta = 1; delta < kWarp; delta *= 2) {
    const int below = __shfl_up_sync(kFullMask, x, delta);
    x += lane_of_warp() >= delta ? below : 0;
  }
  store(p.out + thread_of_grid(), x);
}

// Counts of each value: in shared memory of a size known at launch, then added to the total.
struct HistogramParams {
  const int* x;
  unsigned long long* counts;
  int64_t n;
  int num_bins;
};

__global__ void histogram_kernel(const HistogramParams p) {
  KGREC_DYNAMIC_SHARED(int, counts);
  for (int i = static_cast<int>(threadIdx.x); i < p.num_bins; i += kBlock) {
    counts[i] = 0;
  }
  __syncthreads();
  for (int64_t i = thread_of_grid(); i < p.n; i += threads_in_grid()) {
    atomicAdd(&counts[load(p.x + i)], 1);
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < p.num_bins; i += kBlock) {
    atomicAdd(p.counts + i, static_cast<unsigned long long>(counts[i]));
  }
}

// out[k][thread] = result of the k-th primitive on the thread's x.
struct PrimitiveParams {
  const int* x;
  int* out;
  int64_t n;
  int argument;
  int width;
};

__global__ void primitives_kernel(const PrimitiveParams p) {
  const int64_t i = thread_of_grid();
  const int x = load(p.x + i);
  int* out = p.out + i;
  store(out, __shfl_sync(kFullMask, x, p.argument, p.width));
  store(out + p.n, __shfl_up_sync(kFullMask, x, p.argument, p.width));
  store(out + 2 * p.n, __shfl_down_sync(kFullMask, x, p.argument, p.width));
  store(out + 3 * p.n, __shfl_xor_sync(kFullMask, x, p.argument, p.width));
  store(out + 4 * p.n, static_cast<int>(__ballot_sync(kFullMask, x > p.argument)));
  store(out + 5 * p.n, __any_sync(kFullMask, x > p.argument));
  store(out + 6 * p.n, __all_sync(kFullMask, x > p.argument));
  store(out + 7 * p.n, group_max(x, p.width, kFullMask));
}

// To float and back.
template <class T>
struct ConvertParams {
  const T* x;
  float* wide;
  T* narrow;
  int64_t n;
};

template <class T>
__global__ void convert_kernel(const ConvertParams<T> p) {
  constexpr int kSize = Vec<T>::kSize;
  for (int64_t i = thread_of_grid() * kSize; i < p.n; i += threads_in_grid() * kSize) {
    const Wide<T> wide = load_wide(p.x + i);
    for (int k = 0; k < kSize; ++k) {
      store(p.wide + i + k, wide[k]);
    }
    store_wide(p.narrow + i, wide);
  }
}

struct NarrowParams {
  const float* x;
  Half* half;
  BFloat16* bfloat16;
  int64_t n;
};

__global__ void narrow_kernel(const NarrowParams p) {
  for (int64_t i = thread_of_grid(); i < p.n; i += threads_in_grid()) {
    const float x = load(p.x + i);
    store(p.half + i, narrow<Half>(x));
    store(p.bfloat16 + i, narrow<BFloat16>(x));
  }
}

// One warp, three ways to read 16 bytes a lane or 4.
struct AccessParams {
  const float* x;
  float* out;
  int64_t stride;  // elements from lane to lane
};

__global__ void access_kernel(const AccessParams p) {
  for (int round = 0; round < 2; ++round) {
    const Vec<float> v = load_vec(p.x + lane_of_warp() * p.stride);
    store(p.out + lane_of_warp(), v[0]);
  }
}

template <class T>
void launch_convert(cuda_host::Args& args) {
  args.launcher(
      convert_kernel<T>, 4, kBlock, 0,
      ConvertParams<T>{
          args.in<T>("x"), args.out<float>("wide"), args.out<T>("narrow"), args.size("x")});
}

}  // namespace

KGREC_ENTRY(block_sum) {
  const SumParams p{args.in<float>("x"), args.out<float>("out"), args.size("x")};
  args.launcher(block_sum_kernel, static_cast<unsigned>(args.size("out")), kBlock, 0, p);
}

KGREC_ENTRY(segment_sum) {
  const SegmentParams p{
      args.in<int64_t>("ptr"), args.in<double>("x"), args.out<double>("out"),
      args.out<int>("long_segments"), args.size("out")};
  const auto warps = static_cast<unsigned>(args.size("long_segments"));
  args.launcher(segment_sum_kernel, warps, kWarp, 0, p);
}

KGREC_ENTRY(warp_scan) {
  const ScanParams p{args.in<int>("x"), args.out<int>("out")};
  args.launcher(warp_scan_kernel, static_cast<unsigned>(args.size("x") / kBlock), kBlock, 0, p);
}

KGREC_ENTRY(histogram) {
  const int bins = static_cast<int>(args.size("counts"));
  // CUDA has no atomics on int64_t.
  auto* counts = reinterpret_cast<unsigned long long*>(args.out<int64_t>("counts"));
  const HistogramParams p{args.in<int>("x"), counts, args.size("x"), bins};
  args.launcher(histogram_kernel, 5, kBlock, bins * sizeof(int), p);
}

KGREC_ENTRY(primitives) {
  const PrimitiveParams p{
      args.in<int>("x"), args.out<int>("out"), args.size("x"),
      static_cast<int>(args.integer("argument")), static_cast<int>(args.integer("width"))};
  args.launcher(primitives_kernel, static_cast<unsigned>(args.size("x") / kBlock), kBlock, 0, p);
}

KGREC_ENTRY(convert) {
  args.dtype() == DType::f16 ? launch_convert<Half>(args) : launch_convert<BFloat16>(args);
}

KGREC_ENTRY(narrow) {
  const NarrowParams p{
      args.in<float>("x"), args.out<Half>("half"), args.out<BFloat16>("bfloat16"), args.size("x")};
  args.launcher(narrow_kernel, 4, kBlock, 0, p);
}

KGREC_ENTRY(access) {
  const AccessParams p{args.in<float>("x"), args.out<float>("out"), args.integer("stride")};
  args.launcher(access_kernel, 1, kWarp, 0, p);
}

}  // namespace kgrec::cuda
