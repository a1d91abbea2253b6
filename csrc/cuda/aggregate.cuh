// Weighted sums over the edges of a row or column. A group of lanes holds the sum of a row in
// registers; each lane looks up one edge, and the group then takes the edges one after the other.
#pragma once

#include "cuda/aggregate.h"
#include "cuda/edge_dots.cuh"
#include "cuda/shares.cuh"

namespace kgrec::cuda {

// What a lane has looked up of an edge.
template <class A>
struct LaneEdge {
  int32_t idx = -1;  // where it is masked or there is none
  int32_t rel = 0;
  A factor = A(1);
};

template <class A>
KGREC_DEVICE LaneEdge<A> look_up(const AggregateParams& p, int64_t e, int64_t end) {
  const OrderView& order = p.order;
  LaneEdge<A> edge;
  if (e >= end || (order.mask != nullptr && load(order.mask + e) == 0)) {
    return edge;
  }
  edge.idx = load(order.idx + e);
  if (p.relation.data != nullptr) {
    edge.rel = load(order.rel + e);
  }
  if (p.weight != nullptr) {
    const int64_t in_row_order = order.pos != nullptr ? load(order.pos + e) : e;
    edge.factor = load(static_cast<const A*>(p.weight) + in_row_order);
  }
  if (p.source_scale != nullptr) {
    edge.factor *= load(static_cast<const A*>(p.source_scale) + edge.idx);
  }
  return edge;
}

// Adds relation[rel] times the sum of a run to `sum`.
template <class T, class C, class A>
KGREC_DEVICE void end_run(
    const AggregateParams& p, const C& columns, int32_t rel, const LaneValues<C, A>& run,
    LaneValues<C, A>& sum) {
#pragma unroll
  for (int v = 0; v < C::kVectors; ++v) {
    if (p.relation.data != nullptr) {
      A r[C::kSize];
      columns.read(matrix_row<T>(p.relation, rel), v, r);
#pragma unroll
      for (int i = 0; i < C::kSize; ++i) {
        sum[v][i] += run[v][i] * r[i];
      }
    } else {
#pragma unroll
      for (int i = 0; i < C::kSize; ++i) {
        sum[v][i] += run[v][i];
      }
    }
  }
}

// The sum over the edges of a share; returns how many there are.
template <class T, class C, class A>
KGREC_DEVICE int32_t
sum_share(const AggregateParams& p, const C& columns, const Share& share, LaneValues<C, A>& sum) {
  constexpr int kLongestRun = 64;  // sums of sums lose less than one long sum
  LaneValues<C, A> run{};
  int32_t count = 0, rel_of_run = 0;
  int in_run = 0;
  for (int64_t first = share.begin; first < share.end; first += C::kLanes) {
    const LaneEdge<A> mine = look_up<A>(p, first + share.lane, share.end);
    const int64_t left = share.end - first;
    const int edges = left < C::kLanes ? static_cast<int>(left) : C::kLanes;
    for (int j = 0; j < edges; ++j) {
      LaneEdge<A> edge;
      edge.idx = __shfl_sync(share.mask, mine.idx, j, C::kLanes);
      if (edge.idx < 0) {
        continue;
      }
      edge.rel = __shfl_sync(share.mask, mine.rel, j, C::kLanes);
      edge.factor = __shfl_sync(share.mask, mine.factor, j, C::kLanes);
      if (in_run == kLongestRun || (in_run > 0 && edge.rel != rel_of_run)) {
        end_run<T>(p, columns, rel_of_run, run, sum);
        run = LaneValues<C, A>{};
        in_run = 0;
      }
      rel_of_run = edge.rel;
      ++in_run;
      ++count;
      const T* x = matrix_row<T>(p.x, edge.idx);
#pragma unroll
      for (int v = 0; v < C::kVectors; ++v) {
        A values[C::kSize];
        columns.read(x, v, values);
#pragma unroll
        for (int i = 0; i < C::kSize; ++i) {
          run[v][i] += edge.factor * values[i];
        }
      }
    }
  }
  if (in_run > 0) {
    end_run<T>(p, columns, rel_of_run, run, sum);
  }
  return count;
}

// From the sum of a row to its result.
template <class T, class C, class A>
KGREC_DEVICE void finish_row(
    const AggregateParams& p, const C& columns, int64_t row, int32_t count, bool counts,
    LaneValues<C, A>& sum) {
  A scale = A(p.scale);
  if (p.inverse_count != nullptr) {
    const A inverse = A(1) / A(count > 0 ? count : 1);
    if (counts) {
      store(static_cast<A*>(p.inverse_count) + row, inverse);
    }
    scale *= inverse;
  }
  if (p.row_scale != nullptr) {
    scale *= load(static_cast<const A*>(p.row_scale) + row);
  }
#pragma unroll
  for (int v = 0; v < C::kVectors; ++v) {
    A addend[C::kSize] = {};
    if (row < p.addend_rows) {
      columns.read(static_cast<const A*>(p.addend) + row * p.width, v, addend);
    }
#pragma unroll
    for (int i = 0; i < C::kSize; ++i) {
      sum[v][i] = sum[v][i] * scale + addend[i];
    }
    if (p.wide_out) {
      columns.write(static_cast<A*>(p.out) + row * p.width, v, sum[v]);
    } else {
      columns.write(static_cast<T*>(p.out) + row * p.width, v, sum[v]);
    }
  }
}

template <class T, class S>
__global__ void __launch_bounds__(kBlockThreads, kBlocksAtOnce)
    aggregate_kernel(const AggregateParams p) {
  using A = acc_t<T>;
  using C = LaneColumns<T, S>;
  for_shares<C::kLanes>(p.order, p.plan, [&](const Share& share) {
    int64_t slice = 0;
    do {
      const C columns(share.lane, slice, p.width);
      const bool counts = slice == 0 && share.lane == 0;
      LaneValues<C, A> sum{};
      int32_t count = sum_share<T>(p, columns, share, sum);
      if (share.together) {
        sum_groups(sum);
        count = sum_groups<C::kLanes>(count);
      }
      if (share.together && share.group > 0) {
        // The first group writes.
      } else if (share.chunk < 0) {
        finish_row<T>(p, columns, share.row, count, counts, sum);
      } else {
        write_lanes(columns, static_cast<A*>(p.partial) + share.chunk * p.width, sum);
        if (counts) {
          store(p.partial_count + share.chunk, count);
        }
      }
      slice = C::next_slice(slice);
    } while (slice < p.width);
  });
}

// Adds up the chunks of each hub, in their order.
template <class T, class S>
__global__ void __launch_bounds__(kBlockThreads, kBlocksAtOnce)
    aggregate_hub_kernel(const AggregateParams p) {
  using A = acc_t<T>;
  using C = LaneColumns<T, S>;
  const int64_t step = threads_in_grid() / C::kLanes;
  const int lane = lane_of_warp() % C::kLanes;
  for (int64_t i = thread_of_grid() / C::kLanes; i < p.plan.num_hubs; i += step) {
    const int32_t* hub = p.plan.hub + 3 * i;
    const int32_t row = load(hub), begin = load(hub + 1), end = load(hub + 2);
    int64_t slice = 0;
    do {
      const C columns(lane, slice, p.width);
      LaneValues<C, A> sum{};
      int32_t count = 0;
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        count += p.partial_count != nullptr ? load(p.partial_count + chunk) : 0;
#pragma unroll
        for (int v = 0; v < C::kVectors; ++v) {
          A part[C::kSize];
          columns.read(static_cast<const A*>(p.partial) + chunk * p.width, v, part);
#pragma unroll
          for (int k = 0; k < C::kSize; ++k) {
            sum[v][k] += part[k];
          }
        }
      }
      finish_row<T>(p, columns, row, count, slice == 0 && lane == 0, sum);
      slice = C::next_slice(slice);
    } while (slice < p.width);
  }
}

// The second half alone, for partial sums of other kernels.
template <class Run>
void launches_hubs(const AggregateParams& p, Run&& run) {
  with_row_shape(p.dtype, p.width, true, [&](auto element, auto shape) {
    using S = decltype(shape);
    run(aggregate_hub_kernel<decltype(element), S>, grid_for_rows<S>(p.plan.num_hubs), p);
  });
}

template <class Run>
void launches_aggregate(const AggregateParams& p, Run&& run) {
  const bool aligned = is_aligned(p.x, p.dtype) && is_aligned(p.relation, p.dtype) &&
                       is_aligned(Matrix{p.addend, p.width}, accumulate(p.dtype));
  with_row_shape(p.dtype, p.width, aligned, [&](auto element, auto shape) {
    using T = decltype(element);
    using S = decltype(shape);
    run(aggregate_kernel<T, S>, grid_for_shares<S>(p.plan), p);
    run(aggregate_hub_kernel<T, S>, grid_for_rows<S>(p.plan.num_hubs), p);
  });
}

// -- Products of both ends -------------------------------------------------------------------

template <class T, class S>
__global__ void __launch_bounds__(kBlockThreads, kBlocksAtOnce)
    edge_dot_kernel(const EdgeDotParams p) {
  using A = acc_t<T>;
  using C = LaneColumns<T, S>;
  for_shares<C::kLanes>(p.order, p.plan, [&](const Share& share) {
    for_edge_dots<T, C>(
        p.order, nullptr, share, p.row_side, p.col_side, p.width,
        [](const C&, int32_t, const LaneValues<C, A>& values) { return values; },
        [&](int64_t e, bool, A product) { store(static_cast<A*>(p.out) + e, product); });
  });
}

template <class Run>
void launches_edge_dot(const EdgeDotParams& p, Run&& run) {
  const bool aligned = is_aligned(p.row_side, p.dtype) && is_aligned(p.col_side, p.dtype);
  with_row_shape(p.dtype, p.width, aligned, [&](auto element, auto shape) {
    using S = decltype(shape);
    run(edge_dot_kernel<decltype(element), S>, grid_for_shares<S>(p.plan), p);
  });
}

}  // namespace kgrec::cuda
