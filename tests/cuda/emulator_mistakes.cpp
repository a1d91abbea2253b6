// Kernels with one mistake each, for the emulator's own tests.
#include "cuda/device.cuh"
#include "entry.h"

namespace kgrec::cuda {
namespace {

constexpr int kBlock = 64;
constexpr int kHub = 37;  // the thread that does what it should not

struct MistakeParams {
  const float* x;  // [kBlock]
  float* out;      // [kBlock]
};

// -- Results that depend on the order, or are NaN ----------------------------------------------

__global__ void no_syncthreads_kernel(const MistakeParams p) {
  KGREC_SHARED(float, row, kBlock);
  row[threadIdx.x] = load(p.x + threadIdx.x);
  store(p.out + threadIdx.x, row[kBlock - 1 - threadIdx.x]);
}

__global__ void no_syncwarp_kernel(const MistakeParams p) {
  KGREC_SHARED(float, row, kBlock);
  row[threadIdx.x] = load(p.x + threadIdx.x);
  store(p.out + threadIdx.x, row[threadIdx.x ^ 1]);
}

// Read by the neighbour before it is overwritten? Only in some orders.
__global__ void no_second_syncwarp_kernel(const MistakeParams p) {
  KGREC_SHARED(float, row, kBlock);
  row[threadIdx.x] = load(p.x + threadIdx.x);
  __syncwarp();
  const float other = row[threadIdx.x ^ 1];
  row[threadIdx.x] = other + 1;
  __syncwarp();
  store(p.out + threadIdx.x, row[threadIdx.x]);
}

__global__ void uninitialised_shared_kernel(const MistakeParams p) {
  KGREC_SHARED(float, row, kBlock);
  KGREC_DYNAMIC_SHARED(float, more);
  if (threadIdx.x != kHub) {
    row[threadIdx.x] = load(p.x + threadIdx.x);
    more[threadIdx.x] = 0;
  }
  __syncthreads();
  const int i = static_cast<int>(threadIdx.x + 1) % kBlock;
  store(p.out + threadIdx.x, row[i] + more[threadIdx.x]);
}

// -- Lanes that do not meet --------------------------------------------------------------------

__global__ void barrier_after_exit_kernel(const MistakeParams p) {
  if (threadIdx.x == kHub) {
    return;
  }
  __syncthreads();
  store(p.out + threadIdx.x, 0.0f);
}

__global__ void barriers_apart_kernel(const MistakeParams) {
  if (threadIdx.x == kHub) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void barrier_against_shuffle_kernel(const MistakeParams p) {
  if (threadIdx.x == kHub) {
    __syncthreads();
  }
  store(p.out + threadIdx.x, __shfl_sync(kFullMask, 1.0f, 0));
}

__global__ void shuffle_after_exit_kernel(const MistakeParams p) {
  if (threadIdx.x == kHub) {
    return;
  }
  store(p.out + threadIdx.x, __shfl_xor_sync(kFullMask, 1.0f, 1));
}

__global__ void syncwarp_in_branch_kernel(const MistakeParams) {
  if (threadIdx.x != kHub) {
    __syncwarp();
  }
}

__global__ void masks_differ_kernel(const MistakeParams p) {
  const unsigned mask = threadIdx.x == kHub ? kFullMask : group_mask(lane_of_warp(), 16);
  store(p.out + threadIdx.x, __shfl_xor_sync(mask, 1.0f, 1));
}

__global__ void mask_without_self_kernel(const MistakeParams p) {
  store(p.out + threadIdx.x, __shfl_sync(threadIdx.x == kHub ? 1u : kFullMask, 1.0f, 0));
}

__global__ void absent_lane_kernel(const MistakeParams p) {
  store(p.out + threadIdx.x, __shfl_xor_sync(kFullMask, 1.0f, 1));
}

__global__ void source_outside_mask_kernel(const MistakeParams p) {
  const unsigned mask = group_mask(lane_of_warp(), 16);
  store(p.out + threadIdx.x, __shfl_xor_sync(mask, 1.0f, threadIdx.x == kHub ? 16 : 1));
}

__global__ void primitives_differ_kernel(const MistakeParams) {
  if (threadIdx.x == kHub) {
    __any_sync(kFullMask, 1);
  } else {
    __all_sync(kFullMask, 1);
  }
}

__global__ void sites_differ_kernel(const MistakeParams p) {
  float x = 1;
  if (threadIdx.x == kHub) {
    x = group_sum(x, 4, kFullMask);
  } else {
    x = group_sum(x, 4, kFullMask);
  }
  store(p.out + threadIdx.x, x);
}

// -- Memory ------------------------------------------------------------------------------------

__global__ void read_past_end_kernel(const MistakeParams p) {
  store(p.out + threadIdx.x, load(p.x + threadIdx.x + (threadIdx.x == kHub ? 27 : 0)));
}

__global__ void read_before_start_kernel(const MistakeParams p) {
  store(p.out + threadIdx.x, load(p.x + threadIdx.x - (threadIdx.x == kHub ? 38 : 0)));
}

// The last vector of a row that is no multiple of 16 bytes.
__global__ void read_across_end_kernel(const MistakeParams p) {
  const Vec<double> v = load(reinterpret_cast<const Vec<double>*>(p.x) + threadIdx.x);
  store(p.out + threadIdx.x, static_cast<float>(v[0]));
}

__global__ void write_past_end_kernel(const MistakeParams p) {
  store(p.out + threadIdx.x + (threadIdx.x == kHub ? 27 : 0), 0.0f);
}

__global__ void write_to_input_kernel(const MistakeParams p) {
  store(threadIdx.x == kHub ? const_cast<float*>(p.x) : p.out + threadIdx.x, 0.0f);
}

__global__ void atomic_past_end_kernel(const MistakeParams p) {
  atomicAdd(reinterpret_cast<int*>(p.out) + threadIdx.x + (threadIdx.x == kHub ? 27 : 0), 1);
}

__global__ void misaligned_vector_kernel(const MistakeParams p) {
  const Vec<float> v = load_vec(p.x + (threadIdx.x == kHub ? 2 : 4));
  store(p.out + threadIdx.x, v[0]);
}

__global__ void misaligned_store_kernel(const MistakeParams p) {
  if (threadIdx.x == kHub) {
    store_vec(p.out + 1, Vec<float>{});
  }
}

__global__ void shared_index_kernel(const MistakeParams) {
  KGREC_SHARED(float, row, kBlock - 1);
  row[threadIdx.x == kHub ? kBlock - 1 : 0] = 0;
}

__global__ void dynamic_shared_index_kernel(const MistakeParams) {
  KGREC_DYNAMIC_SHARED(float, row);
  row[threadIdx.x == kHub ? kBlock : 0] = 0;
}

__global__ void load_past_shared_kernel(const MistakeParams p) {
  KGREC_SHARED(float, row, kBlock);
  row[threadIdx.x] = 0;
  __syncthreads();
  const Vec<float> v = load_vec(&row[0] + (threadIdx.x == kHub ? kBlock : 0));
  store(p.out + threadIdx.x, v[0]);
}

// -- For the sanitizers: nothing that load and store would see ------------------------------------

__global__ void raw_read_past_end_kernel(const MistakeParams p) {
  store(p.out + threadIdx.x, p.x[threadIdx.x + (threadIdx.x == kHub ? 27 : 0)]);
}

__global__ void raw_shared_past_end_kernel(const MistakeParams p) {
  KGREC_SHARED(float, row, kBlock);
  float* raw = &row[0];
  store(p.out + threadIdx.x, raw[threadIdx.x + (threadIdx.x == kHub ? 27 : 0)]);
}

__global__ void local_array_past_end_kernel(const MistakeParams p) {
  const float few[4] = {0, 1, 2, 3};
  // An index that the compiler does not know.
  const int i = load(p.x + threadIdx.x) < 100 && threadIdx.x == kHub ? 4 : 3;
  store(p.out + threadIdx.x, few[i]);
}

__global__ void shift_too_far_kernel(const MistakeParams p) {
  const int lanes = threadIdx.x == kHub ? 32 : static_cast<int>(threadIdx.x % 32);
  store(p.out + threadIdx.x, static_cast<float>(1u << lanes));
}

__global__ void overflow_kernel(const MistakeParams p) {
  const int rows = threadIdx.x == kHub ? 1 << 26 : static_cast<int>(threadIdx.x);
  store(p.out + threadIdx.x, static_cast<float>(rows * kBlock));
}

using Kernel = void (*)(MistakeParams);

Kernel mistake(const std::string& name) {
#define MISTAKE(name)    \
  {                      \
    #name, name##_kernel \
  }
  static const std::map<std::string, Kernel> all = {
      MISTAKE(no_syncthreads),
      MISTAKE(no_syncwarp),
      MISTAKE(no_second_syncwarp),
      MISTAKE(uninitialised_shared),
      MISTAKE(barrier_after_exit),
      MISTAKE(barriers_apart),
      MISTAKE(barrier_against_shuffle),
      MISTAKE(shuffle_after_exit),
      MISTAKE(syncwarp_in_branch),
      MISTAKE(masks_differ),
      MISTAKE(mask_without_self),
      MISTAKE(absent_lane),
      MISTAKE(source_outside_mask),
      MISTAKE(primitives_differ),
      MISTAKE(sites_differ),
      MISTAKE(read_past_end),
      MISTAKE(read_before_start),
      MISTAKE(read_across_end),
      MISTAKE(write_past_end),
      MISTAKE(write_to_input),
      MISTAKE(atomic_past_end),
      MISTAKE(misaligned_vector),
      MISTAKE(misaligned_store),
      MISTAKE(shared_index),
      MISTAKE(dynamic_shared_index),
      MISTAKE(load_past_shared),
      MISTAKE(raw_read_past_end),
      MISTAKE(raw_shared_past_end),
      MISTAKE(local_array_past_end),
      MISTAKE(shift_too_far),
      MISTAKE(overflow)};
#undef MISTAKE
  return all.at(name);
}

}  // namespace

KGREC_ENTRY(mistake) {
  const MistakeParams p{args.in<float>("x"), args.out<float>("out")};
  const auto block = static_cast<unsigned>(args.integer("block", kBlock));
  args.launcher(mistake(args.text("kernel")), 1, block, kBlock * sizeof(float), p);
}

}  // namespace kgrec::cuda
