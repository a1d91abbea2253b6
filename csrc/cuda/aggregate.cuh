// Weighted sums over the edges of a row or column. A group of lanes holds the sum of a row in
// registers; each lane looks up one edge, and the group then takes the edges one after the other.
#pragma once

#include "cuda/aggregate.h"
#include "cuda/edge_dots.cuh"
#include "cuda/hubs.cuh"
#include "cuda/shares.cuh"

namespace kgrec::cuda {

// What a lane has looked up of an edge.
template <class A>
struct LaneEdge {
  int32_t idx = -1;  // where it is masked or there is none
  int32_t rel = 0;
  A factor = A(1);
};

template <bool kRelations, class A>
KGREC_DEVICE LaneEdge<A> look_up(const AggregateParams& p, int64_t e, int64_t end) {
  const OrderView& order = p.order;
  LaneEdge<A> edge;
  if (e >= end) {
    return edge;
  }
  // All at once, masked or not: to wait for the mask first would take as long again.
  const int32_t idx = load(order.idx + e);
  if (kRelations) {
    edge.rel = load(order.rel + e);
  }
  int64_t in_row_order = e;
  if (p.weight != nullptr && order.pos != nullptr) {
    in_row_order = load(order.pos + e);
  }
  if (order.mask != nullptr && load(order.mask + e) == 0) {
    return edge;
  }
  edge.idx = idx;
  if (p.weight != nullptr) {
    edge.factor = load(static_cast<const A*>(p.weight) + in_row_order);
  }
  if (p.source_scale != nullptr) {
    edge.factor *= load(static_cast<const A*>(p.source_scale) + edge.idx);
  }
  return edge;
}

// Adds relation[rel] times the sum of a run to `sum`, and begins the next one.
template <class T, class C, class A>
KGREC_DEVICE void end_run(
    const AggregateParams& p, const C& columns, int32_t rel, LaneValues<C, A>& run,
    LaneValues<C, A>& sum) {
#pragma unroll
  for (int v = 0; v < C::kVectors; ++v) {
    A r[C::kSize];
    columns.read(matrix_row<T>(p.relation, rel), v, r);
#pragma unroll
    for (int i = 0; i < C::kSize; ++i) {
      sum[v][i] += run[v][i] * r[i];
      run[v][i] = 0;
    }
  }
}

// The sum over the edges of a share; returns how many there are. They are few (CHUNK of
// kgrec_fast/cuda_plan.py), so that one long sum loses no digits to speak of.
template <bool kRelations, class T, class C, class A>
KGREC_DEVICE int32_t
sum_share(const AggregateParams& p, const C& columns, const Share& share, LaneValues<C, A>& sum) {
  constexpr int kAtOnce = kEdgesAtOnce<C, A>;
  LaneValues<C, A> run{};  // where there are relations
  int32_t count = 0, rel_of_run = -1;
  for (int64_t first = share.begin; first < share.end; first += C::kLanes) {
    const LaneEdge<A> mine = look_up<kRelations, A>(p, first + share.lane, share.end);
    unsigned left = kept_lanes<C::kLanes>(share.mask, mine.idx >= 0);
    count += __popc(left);
    while (left != 0) {
      int lane[kAtOnce];
      int32_t rel[kAtOnce];
      A factor[kAtOnce];
      LaneValues<C, A> x[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        lane[u] = take_lane(left);
        const int from = lane[u] < 0 ? 0 : lane[u];
        const int32_t idx = __shfl_sync(share.mask, mine.idx, from, C::kLanes);
        factor[u] = __shfl_sync(share.mask, mine.factor, from, C::kLanes);
        rel[u] = kRelations ? __shfl_sync(share.mask, mine.rel, from, C::kLanes) : 0;
        if (lane[u] >= 0) {
          x[u] = lane_values<T>(columns, matrix_row<T>(p.x, idx));
        }
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        if (lane[u] < 0) {
          continue;
        }
        if (kRelations && rel[u] != rel_of_run) {
          if (rel_of_run >= 0) {
            end_run<T>(p, columns, rel_of_run, run, sum);
          }
          rel_of_run = rel[u];
        }
        LaneValues<C, A>& target = kRelations ? run : sum;
#pragma unroll
        for (int v = 0; v < C::kVectors; ++v) {
#pragma unroll
          for (int i = 0; i < C::kSize; ++i) {
            target[v][i] += factor[u] * x[u][v][i];
          }
        }
      }
    }
  }
  if (kRelations && rel_of_run >= 0) {
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
__global__ void __launch_bounds__(kBlockThreads, (kFewColumns<T, S> ? 4 : kBlocksAtOnce))
    aggregate_kernel(const AggregateParams p) {
  using A = acc_t<T>;
  using C = LaneColumns<T, S>;
  for_shares<C::kLanes>(p.order, p.plan, [&](const Share& share) {
    int64_t slice = 0;
    do {
      const C columns(share.lane, slice, p.width);
      const bool counts = slice == 0 && share.lane == 0;
      LaneValues<C, A> sum{};
      int32_t count = p.relation.data != nullptr ? sum_share<true, T>(p, columns, share, sum)
                                                 : sum_share<false, T>(p, columns, share, sum);
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

// Adds up the chunks of each hub: each group its own, and the first group what all of them have, in
// order.
template <class T, class S>
__global__ void __launch_bounds__(kBlockThreads, kBlocksAtOnce)
    aggregate_hub_kernel(const AggregateParams p) {
  using A = acc_t<T>;
  using C = LaneColumns<T, S>;
  constexpr int kGroups = kBlockThreads / C::kLanes;
  KGREC_SHARED(A, parts, kGroups * kPartSize<C>);
  KGREC_SHARED(int32_t, counts, kGroups);
  const int group = static_cast<int>(threadIdx.x) / C::kLanes;
  const int lane = lane_of_warp() % C::kLanes;
  for_hubs<C::kLanes>(p.plan, [&](const HubShare& share) {
    if (p.partial_count != nullptr && lane == 0) {
      int32_t count = 0;
      for (int64_t chunk = share.begin; chunk < share.end; ++chunk) {
        count += load(p.partial_count + chunk);
      }
      counts[group] = count;
    }
    int64_t slice = 0;
    do {
      const C columns(lane, slice, p.width);
      const A* partial = static_cast<const A*>(p.partial);
      put_part(
          &parts[group * kPartSize<C>], lane,
          sum_rows(columns, partial, p.width, share.begin, share.end, [](int64_t i) { return i; }));
      share.meet();
      if (share.group == 0) {
        LaneValues<C, A> sum{};
        int32_t count = 0;
        for (int g = group; g < group + share.groups; ++g) {
          count += p.partial_count != nullptr ? counts[g] : 0;
#pragma unroll
          for (int v = 0; v < C::kVectors; ++v) {
#pragma unroll
            for (int k = 0; k < C::kSize; ++k) {
              sum[v][k] += parts[g * kPartSize<C> + place_in_part<C>(lane, v, k)];
            }
          }
        }
        finish_row<T>(p, columns, share.row, count, slice == 0 && lane == 0, sum);
      }
      share.meet();
      slice = C::next_slice(slice);
    } while (slice < p.width);
  });
}

// The second half alone, for partial sums of other kernels.
template <class Run>
void launches_hubs(const AggregateParams& p, Run&& run) {
  with_row_shape(p.dtype, p.width, true, [&](auto element, auto shape) {
    using S = decltype(shape);
    run(aggregate_hub_kernel<decltype(element), S>, grid_for_hubs(p.plan), p);
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
    run(aggregate_hub_kernel<T, S>, grid_for_hubs(p.plan), p);
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
