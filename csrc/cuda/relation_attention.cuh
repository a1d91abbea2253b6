// Relation attention forward: one pass over the edges of a row with the softmax in registers. Each
// group of lanes keeps the highest score so far and what has been added up against it.
#pragma once

#include "cuda/heads.cuh"
#include "cuda/hubs.cuh"
#include "cuda/relation_attention.h"
#include "cuda/softmax.cuh"

namespace kgrec::cuda {

// This lane's part of the products of each head.
template <class H, class A>
KGREC_DEVICE void add_products(
    const LaneValues<H, A>& left, const LaneValues<H, A>& right, A (&sum)[H::kStates]) {
#pragma unroll
  for (int v = 0; v < H::kVectors; ++v) {
#pragma unroll
    for (int i = 0; i < H::kSize; ++i) {
      sum[H::state(v)] += left[v][i] * right[v][i];
    }
  }
}

// Of factor * left * middle * right.
template <class H, class A>
KGREC_DEVICE void add_products(
    const LaneValues<H, A>& left, const LaneValues<H, A>& middle, const LaneValues<H, A>& right,
    A factor, A (&sum)[H::kStates]) {
#pragma unroll
  for (int v = 0; v < H::kVectors; ++v) {
#pragma unroll
    for (int i = 0; i < H::kSize; ++i) {
      const A key = left[v][i] * middle[v][i] * factor;
      sum[H::state(v)] += key * right[v][i];
    }
  }
}

// The same where the columns at hand are not all of the head.
template <class H, class L, class T, class A>
KGREC_DEVICE void add_products(
    const H& columns, const L* left, const T* middle, const T* right, A factor,
    A (&sum)[H::kStates]) {
  columns.for_head([&](int64_t c) {
    const A key = widen(load(left + c)) * widen(load(middle + c)) * factor;
    sum[0] += key * widen(load(right + c));
  });
}

template <class H, class A>
struct AttentionState {
  A top[H::kStates];
  A total[H::kStates];
  LaneValues<H, A> sum;

  KGREC_DEVICE AttentionState() : total{}, sum{} {
#pragma unroll
    for (int k = 0; k < H::kStates; ++k) {
      top[k] = A(-INFINITY);
    }
  }

  KGREC_DEVICE void multiply(const A (&factor)[H::kStates]) {
#pragma unroll
    for (int k = 0; k < H::kStates; ++k) {
      total[k] *= factor[k];
    }
#pragma unroll
    for (int v = 0; v < H::kVectors; ++v) {
#pragma unroll
      for (int i = 0; i < H::kSize; ++i) {
        sum[v][i] *= factor[H::state(v)];
      }
    }
  }
};

// Adds the edges that are kept: their scores, and X[t] * Rel[r].
template <int kAtOnce, class H, class A>
KGREC_DEVICE void add_edges(
    const bool (&kept)[kAtOnce], const A (&score)[kAtOnce][H::kStates],
    const LaneValues<H, A> (&value)[kAtOnce], AttentionState<H, A>& state) {
  A back[H::kStates];
#pragma unroll
  for (int k = 0; k < H::kStates; ++k) {
    A top = state.top[k];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      top = kept[u] && score[u][k] > top ? score[u][k] : top;
    }
    back[k] = exp(state.top[k] - base_of(top));
    state.top[k] = top;
  }
  state.multiply(back);
#pragma unroll
  for (int u = 0; u < kAtOnce; ++u) {
    if (!kept[u]) {
      continue;
    }
    A factor[H::kStates];
#pragma unroll
    for (int k = 0; k < H::kStates; ++k) {
      factor[k] = exp(score[u][k] - base_of(state.top[k]));
      state.total[k] += factor[k];
    }
#pragma unroll
    for (int v = 0; v < H::kVectors; ++v) {
#pragma unroll
      for (int i = 0; i < H::kSize; ++i) {
        state.sum[v][i] += factor[H::state(v)] * value[u][v][i];
      }
    }
  }
}

// The edges of a share, in step with the other groups of the warp. Rel[r] is read for each edge,
// for the nearest cache has it, and edges need not stand by relation: some of them come at once,
// and the softmax moves on by all of these in one go.
template <class T, class H, class A>
KGREC_DEVICE void attend(
    const AttentionParams& p, const H& columns, const Share& share, int steps,
    AttentionState<H, A>& state) {
  constexpr int kLanes = H::kLanes;
  constexpr int kAtOnce = kEdgesAtOnce<H, A>;
  const A scale = score_scale<A>(p.width, p.num_heads);
  const T* head = matrix_row<T>(p.query, share.row < 0 ? 0 : share.row);
  LaneValues<H, A> query{};
  if (H::kWhole && share.begin < share.end) {
    query = lane_values<T>(columns, head);
  }
  for (int first = 0; first < steps; first += kLanes) {
    const EdgeIds mine = ids_of(p.row, share.begin + first + share.lane, share.end);
    unsigned left = kept_lanes<kLanes>(kFullMask, mine.idx >= 0);
    while (__any_sync(kFullMask, left != 0)) {
      bool kept[kAtOnce];
      LaneValues<H, A> value[kAtOnce];
      A score[kAtOnce][H::kStates] = {};
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int j = take_lane(left);
        const EdgeIds edge = ids_from<kLanes>(mine, j < 0 ? 0 : j);
        kept[u] = j >= 0;
        if (!kept[u]) {
          continue;
        }
        const T* rel = matrix_row<T>(p.relation, edge.rel);
        const T* tail = matrix_row<T>(p.query, edge.idx);
        const LaneValues<H, A> relation = lane_values<T>(columns, rel);
        value[u] = lane_values<T>(columns, matrix_row<T>(p.value, edge.idx));
        if constexpr (H::kWhole) {
          add_products(query, relation, lane_values<T>(columns, tail), scale, score[u]);
        } else {
          add_products(columns, head, rel, tail, scale, score[u]);
        }
#pragma unroll
        for (int v = 0; v < H::kVectors; ++v) {
#pragma unroll
          for (int i = 0; i < H::kSize; ++i) {
            value[u][v][i] *= relation[v][i];
          }
        }
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        columns.sum_heads(score[u]);
      }
      add_edges(kept, score, value, state);
    }
  }
}

// One state of those of all groups of the warp.
template <class H, class A>
KGREC_DEVICE void join_groups(AttentionState<H, A>& state) {
  constexpr int kLanes = H::kLanes;
  A factor[H::kStates];
#pragma unroll
  for (int k = 0; k < H::kStates; ++k) {
    A top = state.top[k];
#pragma unroll
    for (int offset = kLanes; offset < kWarp; offset *= 2) {
      const A other = __shfl_xor_sync(kFullMask, top, offset);
      top = other > top ? other : top;
    }
    factor[k] = exp(state.top[k] - base_of(top));
    state.top[k] = top;
  }
  state.multiply(factor);
#pragma unroll
  for (int k = 0; k < H::kStates; ++k) {
    state.total[k] = sum_groups<kLanes>(state.total[k]);
  }
  sum_groups(state.sum);
}

template <class A>
KGREC_DEVICE A inverse_total(A total) {
  return total == A(0) ? A(0) : A(1) / total;  // no edge: 0
}

template <class A, class P>
KGREC_DEVICE A zero_edges_of(const P& p, int64_t row) {
  return p.zero_edges == nullptr ? A(0) : load(static_cast<const A*>(p.zero_edges) + row);
}

template <class T, class S>
__global__ void __launch_bounds__(kBlockThreads, (kFewColumns<T, S> ? 4 : kAttentionBlocks<T, S>))
    attention_kernel(const AttentionParams p) {
  using A = acc_t<T>;
  using H = HeadColumns<T, S>;
  for_shares_in_step<H::kLanes>(
      p.row, p.plan, all_work(p.plan), warp_of_grid(), warps_in_grid(),
      [&](const Share& share, int steps) {
        for_passes<T, S>(share.lane, p.width, p.num_heads, [&](const H& columns) {
          AttentionState<H, A> state;
          attend<T>(p, columns, share, steps, state);
          if (share.together && H::kLanes < kWarp) {
            join_groups(state);
          }
          if (share.row < 0 || (share.together && share.group > 0)) {
            return;
          }
          const bool whole = share.chunk < 0;
          const A count = whole ? zero_edges_of<A>(p, share.row) : A(0);
          A factor[H::kStates];
#pragma unroll
          for (int k = 0; k < H::kStates; ++k) {
            factor[k] = add_zeros(count, state.top[k], state.total[k]);
            factor[k] *= whole ? inverse_total(state.total[k]) : A(1);
          }
          A* out = whole ? static_cast<A*>(p.out) + share.row * p.width
                         : static_cast<A*>(p.partial) + share.chunk * p.width;
#pragma unroll
          for (int v = 0; v < H::kVectors; ++v) {
            const int k = H::state(v);
#pragma unroll
            for (int i = 0; i < H::kSize; ++i) {
              state.sum[v][i] *= factor[k];
            }
            columns.write(out, v, state.sum[v]);
            if (v >= H::kStates || !columns.leads(v)) {
              continue;
            }
            if (whole) {
              store(
                  static_cast<A*>(p.lse) + share.row * p.num_heads + columns.head(v),
                  state.top[k] + log(state.total[k]));
            } else {
              A* softmax = static_cast<A*>(p.partial_softmax) + 2 * share.chunk * p.num_heads;
              store(softmax + columns.head(v), state.top[k]);
              store(softmax + p.num_heads + columns.head(v), state.total[k]);
            }
          }
        });
      });
}

// The chunks of each hub: each group puts its own together, and the first group what all of them
// have, in order.
template <class T, class S>
__global__ void __launch_bounds__(
    kBlockThreads, (sizeof(acc_t<T>) == 8 ? 1 : kAttentionBlocks<T, S>))
    attention_hub_kernel(const AttentionParams p) {
  using A = acc_t<T>;
  using C = LaneColumns<T, S>;
  constexpr int kGroups = kBlockThreads / C::kLanes;
  constexpr int kNumbers = C::kLanes * C::kVectors;  // of a group: one a lane and vector
  KGREC_SHARED(A, parts, kGroups * kPartSize<C>);
  KGREC_SHARED(A, tops, kGroups * kNumbers);
  KGREC_SHARED(A, totals, kGroups * kNumbers);
  const int group = static_cast<int>(threadIdx.x) / C::kLanes;
  const int lane = lane_of_warp() % C::kLanes;
  const int64_t head_width = p.width / p.num_heads;
  for_hubs<C::kLanes>(p.plan, [&](const HubShare& share) {
    int64_t slice = 0;
    do {
      const C columns(lane, slice, p.width);
      LaneValues<C, A> sum{};
#pragma unroll
      for (int v = 0; v < C::kVectors; ++v) {
        const int64_t head = columns.column(v) / head_width;
        const A* softmax = static_cast<const A*>(p.partial_softmax) + head;
        A top = A(-INFINITY), total = 0;
#pragma unroll 4
        for (int64_t chunk = share.begin; chunk < share.end; ++chunk) {
          const A other = load(softmax + 2 * chunk * p.num_heads);
          top = other > top ? other : top;
        }
#pragma unroll 2
        for (int64_t chunk = share.begin; chunk < share.end; ++chunk) {
          const A* of_chunk = softmax + 2 * chunk * p.num_heads;
          const A factor = exp(load(of_chunk) - base_of(top));
          total += factor * load(of_chunk + p.num_heads);
          A part[C::kSize];
          columns.read(static_cast<const A*>(p.partial) + chunk * p.width, v, part);
#pragma unroll
          for (int i = 0; i < C::kSize; ++i) {
            sum[v][i] += factor * part[i];
          }
        }
        tops[group * kNumbers + v * C::kLanes + lane] = top;
        totals[group * kNumbers + v * C::kLanes + lane] = total;
      }
      put_part(&parts[group * kPartSize<C>], lane, sum);
      share.meet();
      if (share.group == 0) {
        const int last = group + share.groups;
#pragma unroll
        for (int v = 0; v < C::kVectors; ++v) {
          const int number = v * C::kLanes + lane;
          A top = A(-INFINITY), total = 0, result[C::kSize] = {};
          for (int g = group; g < last; ++g) {
            const A other = tops[g * kNumbers + number];
            top = other > top ? other : top;
          }
          for (int g = group; g < last; ++g) {
            const A factor = exp(tops[g * kNumbers + number] - base_of(top));
            total += factor * totals[g * kNumbers + number];
#pragma unroll
            for (int i = 0; i < C::kSize; ++i) {
              result[i] += factor * parts[g * kPartSize<C> + place_in_part<C>(lane, v, i)];
            }
          }
          A rest = add_zeros(zero_edges_of<A>(p, share.row), top, total);
          rest *= inverse_total(total);  // of the total with the zeros
#pragma unroll
          for (int i = 0; i < C::kSize; ++i) {
            result[i] *= rest;
          }
          columns.write(static_cast<A*>(p.out) + share.row * p.width, v, result);
          if (columns.column(v) % head_width == 0) {
            const int64_t head = columns.column(v) / head_width;
            store(static_cast<A*>(p.lse) + share.row * p.num_heads + head, top + log(total));
          }
        }
      }
      share.meet();
      slice = C::next_slice(slice);
    } while (slice < p.width);
  });
}

template <class Run>
void launches_attention(const AttentionParams& p, Run&& run) {
  const bool aligned = is_aligned(p.query, p.dtype) && is_aligned(p.value, p.dtype) &&
                       is_aligned(p.relation, p.dtype);
  with_head_shape(p.dtype, p.width, p.num_heads, aligned, [&](auto element, auto shape) {
    using T = decltype(element);
    using S = decltype(shape);
    run(attention_kernel<T, S>, grid_for_shares<S>(p.plan), p);
    run(attention_hub_kernel<T, S>, grid_for_hubs(p.plan), p);
  });
}

}  // namespace kgrec::cuda
