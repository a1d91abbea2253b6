// Gradients of the relations of a mean: a row pass that reads the tails of each run once.
#pragma once

#include "cuda/relation_sums.cuh"

namespace kgrec::cuda {

template <class T, class H, class A>
KGREC_DEVICE void give_runs(
    const RelationGradParams& p, const H& columns, const Share& share, int steps, A* shared) {
  constexpr int kLanes = H::kLanes;
  constexpr int kAtOnce = kEdgesAtOnce<H, A>;
  LaneValues<H, A> left{}, run{};
  if (share.begin < share.end) {
    const A factor = load(static_cast<const A*>(p.left_scale) + share.row);
    left = lane_values<T>(columns, matrix_row<T>(p.left, share.row));
#pragma unroll
    for (int v = 0; v < H::kVectors; ++v) {
#pragma unroll
      for (int i = 0; i < H::kSize; ++i) {
        left[v][i] *= factor;
      }
    }
  }
  RunShares<H, A> shares(p.sums, p.width, share, shared);
  int32_t rel_of_run = -1;
  const auto end_run = [&](bool ends) {
    shares.add(columns, ends, rel_of_run, [&](int v, A* given) {
#pragma unroll
      for (int i = 0; i < H::kSize; ++i) {
        given[i] = left[v][i] * run[v][i];
      }
    });
    if (ends) {
      run = LaneValues<H, A>{};
    }
  };
  for (int first = 0; first < steps; first += kLanes) {
    const EdgeIds mine = ids_of(p.row, share.begin + first + share.lane, share.end);
    const int edges = steps - first < kLanes ? steps - first : kLanes;
    for (int begin = 0; begin < edges; begin += kAtOnce) {
      EdgeIds ids[kAtOnce];
      LaneValues<H, A> x[kAtOnce]{};
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        if (begin + u < edges) {
          ids[u] = ids_from<kLanes>(mine, begin + u);
        }
        if (ids[u].idx >= 0) {
          x[u] = lane_values<T>(columns, matrix_row<T>(p.x, ids[u].idx));
        }
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        // Runs end at masked edges too, so that each place is written.
        const bool ends = ids[u].rel >= 0 && rel_of_run >= 0 && ids[u].rel != rel_of_run;
        if (__any_sync(kFullMask, ends)) {
          end_run(ends);
        }
        rel_of_run = ids[u].rel >= 0 ? ids[u].rel : rel_of_run;
        if (ids[u].idx >= 0) {
#pragma unroll
          for (int v = 0; v < H::kVectors; ++v) {
#pragma unroll
            for (int i = 0; i < H::kSize; ++i) {
              run[v][i] += x[u][v][i];
            }
          }
        }
      }
    }
  }
  end_run(rel_of_run >= 0);
  shares.finish(columns, share.together);
}

template <class T, class S>
__global__ void __launch_bounds__(kSumsThreads, (kFewColumns<T, S> ? 4 : kBlocksAtOnce))
    relation_grad_kernel(const RelationGradParams p) {
  using A = acc_t<T>;
  using H = HeadColumns<T, S>;
  KGREC_DYNAMIC_SHARED(A, shared);
  for_sums_blocks<A>(
      p.sums, p.width, static_cast<A*>(shared), [&](int64_t first, int64_t stride, A* mine) {
        for_shares_in_step<H::kLanes>(
            p.row, p.plan, work_of(p.plan, p.sums), first, stride,
            [&](const Share& share, int steps) {
              for_passes<T, S>(share.lane, p.width, 1, [&](const H& columns) {
                give_runs<T>(p, columns, share, steps, mine);
              });
            });
      });
}

template <class Run>
void launches_relation_grad(const RelationGradParams& p, Run&& run) {
  const bool aligned = is_aligned(p.x, p.dtype) && is_aligned(p.left, p.dtype);
  with_row_shape(p.dtype, p.width, aligned, [&](auto element, auto shape) {
    using T = decltype(element);
    using S = decltype(shape);
    launches_with_sums<HeadColumns<T, S>::kLanes>(relation_grad_kernel<T, S>, p, run);
  });
}

}  // namespace kgrec::cuda
