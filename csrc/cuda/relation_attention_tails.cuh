// Relation attention backward over columns: what tails give as keys, ds_e Q[h] * Rel[r] / sqrt(d),
// and as values, a_e dO[h] * Rel[r].
#pragma once

#include <cmath>

#include "cuda/aggregate.cuh"
#include "cuda/heads.cuh"
#include "cuda/relation_attention.h"

namespace kgrec::cuda {

// a_e and ds_e of one edge and head.
template <class A>
struct alignas(2 * sizeof(A)) EdgeGrad {
  A weight, score;
};

// What a lane has looked up of an edge.
struct TailEdge {
  int32_t idx = -1;  // where it is masked or there is none
  int32_t rel = 0;
  int32_t pos = 0;  // in row order
};

template <class C, class A>
struct TailSums {
  LaneValues<C, A> keys{}, values{};
};

// Adds relation[rel] times the sums of a run.
template <class T, class C, class A>
KGREC_DEVICE void end_tail_run(
    const AttentionTailsParams& p, const C& columns, int32_t rel, const TailSums<C, A>& run,
    TailSums<C, A>& sum) {
#pragma unroll
  for (int v = 0; v < C::kVectors; ++v) {
    A r[C::kSize];
    columns.read(matrix_row<T>(p.relation, rel), v, r);
#pragma unroll
    for (int i = 0; i < C::kSize; ++i) {
      sum.keys[v][i] += run.keys[v][i] * r[i];
      sum.values[v][i] += run.values[v][i] * r[i];
    }
  }
}

template <class T, class C, class A>
KGREC_DEVICE void sum_tails(
    const AttentionTailsParams& p, const C& columns, const Share& share, TailSums<C, A>& sum) {
  constexpr int kLongestRun = 64;  // sums of sums lose less than one long sum
  constexpr int kAtOnce = kEdgesAtOnce<C, A>;
  const OrderView& col = p.col;
  int head[C::kVectors];
#pragma unroll
  for (int v = 0; v < C::kVectors; ++v) {
    head[v] = static_cast<int>(columns.column(v) / (p.width / p.num_heads));
  }
  TailSums<C, A> run;
  int32_t rel_of_run = 0;
  int in_run = 0;
  for (int64_t first = share.begin; first < share.end; first += C::kLanes) {
    TailEdge mine;
    const int64_t e = first + share.lane;
    if (e < share.end) {
      mine = {load(col.idx + e), load(col.rel + e), load(col.pos + e)};
      if (col.mask != nullptr && load(col.mask + e) == 0) {
        mine.idx = -1;
      }
    }
    unsigned left = kept_lanes<C::kLanes>(share.mask, mine.idx >= 0);
    while (left != 0) {
      TailEdge edges[kAtOnce];
      EdgeGrad<A> factor[kAtOnce][C::kVectors];
      LaneValues<C, A> query[kAtOnce], out[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int j = take_lane(left);
        const int from = j < 0 ? 0 : j;
        const int32_t idx = __shfl_sync(share.mask, mine.idx, from, C::kLanes);
        edges[u].rel = __shfl_sync(share.mask, mine.rel, from, C::kLanes);
        const int64_t pos = __shfl_sync(share.mask, mine.pos, from, C::kLanes);
        if (j < 0) {
          continue;
        }
        edges[u].idx = idx;
        const auto* grad = static_cast<const EdgeGrad<A>*>(p.edge_grad) + pos * p.num_heads;
#pragma unroll
        for (int v = 0; v < C::kVectors; ++v) {
          factor[u][v] = load(grad + head[v]);
        }
        query[u] = lane_values<T>(columns, matrix_row<T>(p.query, idx));
        out[u] = lane_values<T>(columns, matrix_row<T>(p.grad_out, idx));
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        if (edges[u].idx < 0) {
          continue;
        }
        if (in_run == kLongestRun || (in_run > 0 && edges[u].rel != rel_of_run)) {
          end_tail_run<T>(p, columns, rel_of_run, run, sum);
          run = TailSums<C, A>{};
          in_run = 0;
        }
        rel_of_run = edges[u].rel;
        ++in_run;
#pragma unroll
        for (int v = 0; v < C::kVectors; ++v) {
#pragma unroll
          for (int i = 0; i < C::kSize; ++i) {
            run.keys[v][i] += factor[u][v].score * query[u][v][i];
            run.values[v][i] += factor[u][v].weight * out[u][v][i];
          }
        }
      }
    }
  }
  if (in_run > 0) {
    end_tail_run<T>(p, columns, rel_of_run, run, sum);
  }
}

template <class T, class S>
__global__ void __launch_bounds__(kBlockThreads, (kFewColumns<T, S> ? 3 : kAttentionBlocks<T, S>))
    attention_tails_kernel(const AttentionTailsParams p) {
  using A = acc_t<T>;
  using C = LaneColumns<T, S>;
  const A scale = score_scale<A>(p.width, p.num_heads);
  for_shares<C::kLanes>(p.col, p.plan, [&](const Share& share) {
    int64_t slice = 0;
    do {
      const C columns(share.lane, slice, p.width);
      TailSums<C, A> sum;
      sum_tails<T>(p, columns, share, sum);
      if (share.together) {
        sum_groups(sum.keys);
        sum_groups(sum.values);
      }
      const int64_t at = (share.chunk < 0 ? share.row : share.chunk) * p.width;
      if (share.together && share.group > 0) {
        // The first group writes.
      } else if (share.chunk < 0) {
#pragma unroll
        for (int v = 0; v < C::kVectors; ++v) {
          A addend[C::kSize] = {};
          if (share.row < p.addend_rows) {
            columns.read(static_cast<const A*>(p.addend) + at, v, addend);
          }
#pragma unroll
          for (int i = 0; i < C::kSize; ++i) {
            sum.keys[v][i] = sum.keys[v][i] * scale + addend[i];
          }
          columns.write(static_cast<T*>(p.grad_query) + at, v, sum.keys[v]);
          columns.write(static_cast<T*>(p.grad_value) + at, v, sum.values[v]);
        }
      } else {
        write_lanes(columns, static_cast<A*>(p.partial_query) + at, sum.keys);
        write_lanes(columns, static_cast<A*>(p.partial_value) + at, sum.values);
      }
      slice = C::next_slice(slice);
    } while (slice < p.width);
  });
}

template <class Run>
void launches_attention_tails(const AttentionTailsParams& p, Run&& run) {
  const bool aligned = is_aligned(p.query, p.dtype) && is_aligned(p.grad_out, p.dtype) &&
                       is_aligned(p.relation, p.dtype);
  with_head_shape(p.dtype, p.width, p.num_heads, aligned, [&](auto element, auto shape) {
    using T = decltype(element);
    using S = decltype(shape);
    run(attention_tails_kernel<T, S>, grid_for_shares<S>(p.plan), p);
  });
  AggregateParams hubs;  // their chunks are added up as those of any sum
  hubs.plan = p.plan;
  hubs.dtype = p.dtype;
  hubs.width = p.width;
  hubs.partial = p.partial_value;
  hubs.out = p.grad_value;
  launches_hubs(hubs, run);
  hubs.partial = p.partial_query;
  hubs.out = p.grad_query;
  hubs.scale = 1 / std::sqrt(double(p.width / p.num_heads));
  hubs.addend = p.addend;
  hubs.addend_rows = p.addend_rows;
  launches_hubs(hubs, run);
}

}  // namespace kgrec::cuda
