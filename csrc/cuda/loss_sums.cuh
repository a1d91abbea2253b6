// Weighted means over rows: a block adds up a chunk of rows at a time, then one block the chunks.
#pragma once

#include "cuda/losses.h"
#include "cuda/rows.cuh"

namespace kgrec::cuda {

// add(row, lanes, sums) for every row, by a group of lanes each; lane 0 of it adds to `sums`.
template <class S, class F>
KGREC_DEVICE void sum_chunks(int64_t rows, LossSums* chunk_sums, F&& add) {
  constexpr int kGroups = kBlockThreads / S::kLanes;
  KGREC_SHARED(double, losses, kGroups);
  KGREC_SHARED(double, totals, kGroups);
  const GroupLanes lanes = group_lanes<S>();
  const int group = static_cast<int>(threadIdx.x) / S::kLanes;
  const int64_t chunks = (rows + kLossChunk - 1) / kLossChunk;
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    const int64_t first = chunk * kLossChunk;
    const int64_t last = first + kLossChunk < rows ? first + kLossChunk : rows;
    LossSums mine;
    for (int64_t row = first + group; row < last; row += kGroups) {
      add(row, lanes, mine);
    }
    if (lanes.lane == 0) {
      losses[group] = mine.loss;
      totals[group] = mine.total;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      LossSums sums;
      for (int g = 0; g < kGroups; ++g) {
        sums.loss += losses[g];
        sums.total += totals[g];
      }
      store(chunk_sums + chunk, sums);
    }
    __syncthreads();
  }
}

template <class A>
__global__ void __launch_bounds__(kBlockThreads) loss_mean_kernel(const LossMeanParams p) {
  KGREC_SHARED(double, losses, kBlockThreads);
  KGREC_SHARED(double, totals, kBlockThreads);
  const int thread = static_cast<int>(threadIdx.x);
  LossSums mine;
  for (int64_t chunk = thread; chunk < p.chunks; chunk += kBlockThreads) {
    const LossSums sums = load(p.mean.sums + chunk);
    mine.loss += sums.loss;
    mine.total += sums.total;
  }
  losses[thread] = mine.loss;
  totals[thread] = mine.total;
  __syncthreads();
  if (thread == 0) {
    LossSums sums;
    for (int t = 0; t < kBlockThreads && t < p.chunks; ++t) {
      sums.loss += losses[t];
      sums.total += totals[t];
    }
    store(static_cast<A*>(p.mean.loss), A(mean_of(sums)));
    store(p.mean.total, sums.total);
  }
}

template <class Run>
void launches_loss_mean(int64_t rows, DType dtype, const LossMean& mean, Run&& run) {
  const LossMeanParams p{loss_chunks(rows), mean};
  Geometry one;
  one.blocks = 1;
  if (accumulate(dtype) == DType::f64) {
    run(loss_mean_kernel<double>, one, p);
  } else {
    run(loss_mean_kernel<float>, one, p);
  }
}

// Weight of a row.
template <class A>
KGREC_DEVICE A weight_at(const void* weight, int64_t row) {
  return weight == nullptr ? A(1) : load(static_cast<const A*>(weight) + row);
}

// What the loss of a row counts for in the incoming gradient.
template <class A, class P>
KGREC_DEVICE A grad_share(const P& p, int64_t row) {
  const double total = load(p.total), grad = double(load(static_cast<const A*>(p.grad)));
  return total == 0 ? A(0) : A(grad / total) * weight_at<A>(p.weight, row);
}

}  // namespace kgrec::cuda
