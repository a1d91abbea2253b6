// Relation attention forward: one pass over the edges of a row with the softmax in registers. Each
// group of lanes keeps the highest score so far and what has been added up against it.
#pragma once

#include "cuda/heads.cuh"
#include "cuda/relation_attention.h"
#include "cuda/softmax.cuh"

namespace kgrec::cuda {

// Q[h] * Rel[r] / sqrt(d), for the score of each edge of a run.
template <class H, class A>
KGREC_DEVICE void make_key(
    const LaneValues<H, A>& query, const LaneValues<H, A>& relation, A scale,
    LaneValues<H, A>& key) {
#pragma unroll
  for (int v = 0; v < H::kVectors; ++v) {
#pragma unroll
    for (int i = 0; i < H::kSize; ++i) {
      key[v][i] = query[v][i] * relation[v][i] * scale;
    }
  }
}

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

// The same where the columns at hand are not all of the head: factor * left * middle * right.
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

template <class H, class A>
KGREC_DEVICE void end_attention_run(
    const LaneValues<H, A>& relation, LaneValues<H, A>& run, LaneValues<H, A>& sum) {
#pragma unroll
  for (int v = 0; v < H::kVectors; ++v) {
#pragma unroll
    for (int i = 0; i < H::kSize; ++i) {
      sum[v][i] += run[v][i] * relation[v][i];
      run[v][i] = 0;
    }
  }
}

// The edges of a share, in step with the other groups of the warp.
template <class T, class H, class A>
KGREC_DEVICE void attend(
    const AttentionParams& p, const H& columns, const Share& share, int steps,
    AttentionState<H, A>& state) {
  constexpr int kLanes = H::kLanes;
  constexpr int kLongestRun = 64;  // sums of sums lose less than one long sum
  const A scale = score_scale<A>(p.width, p.num_heads);
  const T* head = matrix_row<T>(p.query, share.row < 0 ? 0 : share.row);
  LaneValues<H, A> query{}, key{}, relation{}, run{};
  if (H::kWhole && share.begin < share.end) {
    query = lane_values<T>(columns, head);
  }
  int32_t rel_of_run = -1;
  int in_run = 0;
  for (int first = 0; first < steps; first += kLanes) {
    const EdgeIds mine = ids_of(p.row, share.begin + first + share.lane, share.end);
    const int edges = steps - first < kLanes ? steps - first : kLanes;
    for (int j = 0; j < edges; ++j) {
      const EdgeIds edge = ids_from<kLanes>(mine, j);
      const bool kept = edge.idx >= 0;
      if (!__any_sync(kFullMask, kept)) {
        continue;
      }
      const T* rel = matrix_row<T>(p.relation, kept ? edge.rel : 0);
      if (kept && (edge.rel != rel_of_run || in_run == kLongestRun)) {
        end_attention_run(relation, run, state.sum);
        in_run = 0;
        if (edge.rel != rel_of_run) {
          rel_of_run = edge.rel;
          relation = lane_values<T>(columns, rel);
          make_key(query, relation, scale, key);
        }
      }
      A score[H::kStates] = {};
      LaneValues<H, A> x{};
      if (kept) {
        ++in_run;
        const T* tail = matrix_row<T>(p.query, edge.idx);
        x = lane_values<T>(columns, matrix_row<T>(p.value, edge.idx));
        if constexpr (H::kWhole) {
          add_products(key, lane_values<T>(columns, tail), score);
        } else {
          add_products(columns, head, rel, tail, scale, score);
        }
      }
      columns.sum_heads(score);
      if (!kept) {
        continue;
      }
      A back[H::kStates], factor[H::kStates];
#pragma unroll
      for (int k = 0; k < H::kStates; ++k) {
        const A top = score[k] > state.top[k] ? score[k] : state.top[k];
        back[k] = exp(state.top[k] - base_of(top));
        factor[k] = exp(score[k] - base_of(top));
        state.top[k] = top;
      }
      state.multiply(back);
#pragma unroll
      for (int k = 0; k < H::kStates; ++k) {
        state.total[k] += factor[k];
      }
#pragma unroll
      for (int v = 0; v < H::kVectors; ++v) {
        const int k = H::state(v);
#pragma unroll
        for (int i = 0; i < H::kSize; ++i) {
          run[v][i] = run[v][i] * back[k] + factor[k] * x[v][i];
        }
      }
    }
  }
  end_attention_run(relation, run, state.sum);
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

// Wide rows of double need the registers of a whole multiprocessor.
template <class T, class S>
constexpr int kAttentionBlocks =
    sizeof(LaneValues<HeadColumns<T, S>, acc_t<T>>) > 32 ? 1 : kBlocksAtOnce;

template <class T, class S>
__global__ void __launch_bounds__(kBlockThreads, (kAttentionBlocks<T, S>))
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

// Adds up the chunks of each hub, in their order.
template <class T, class S>
__global__ void __launch_bounds__(kBlockThreads, (kAttentionBlocks<T, S>))
    attention_hub_kernel(const AttentionParams p) {
  using A = acc_t<T>;
  using C = LaneColumns<T, S>;
  const int64_t step = threads_in_grid() / C::kLanes;
  const int lane = lane_of_warp() % C::kLanes;
  const int64_t head_width = p.width / p.num_heads;
  for (int64_t hub = thread_of_grid() / C::kLanes; hub < p.plan.num_hubs; hub += step) {
    const int32_t* entry = p.plan.hub + 3 * hub;
    const int64_t row = load(entry), begin = load(entry + 1), end = load(entry + 2);
    int64_t slice = 0;
    do {
      const C columns(lane, slice, p.width);
#pragma unroll
      for (int v = 0; v < C::kVectors; ++v) {
        const int64_t head = columns.column(v) / head_width;
        const A* tops = static_cast<const A*>(p.partial_softmax) + head;
        A top = A(-INFINITY);
        for (int64_t chunk = begin; chunk < end; ++chunk) {
          const A other = load(tops + 2 * chunk * p.num_heads);
          top = other > top ? other : top;
        }
        A total = 0, sum[C::kSize] = {};
        for (int64_t chunk = begin; chunk < end; ++chunk) {
          const A* softmax = tops + 2 * chunk * p.num_heads;
          const A factor = exp(load(softmax) - base_of(top));
          total += factor * load(softmax + p.num_heads);
          A part[C::kSize];
          columns.read(static_cast<const A*>(p.partial) + chunk * p.width, v, part);
#pragma unroll
          for (int i = 0; i < C::kSize; ++i) {
            sum[i] += factor * part[i];
          }
        }
        const A rest = add_zeros(zero_edges_of<A>(p, row), top, total) * inverse_total(total);
#pragma unroll
        for (int i = 0; i < C::kSize; ++i) {
          sum[i] *= rest;
        }
        columns.write(static_cast<A*>(p.out) + row * p.width, v, sum);
        if (columns.column(v) % head_width == 0) {
          store(static_cast<A*>(p.lse) + row * p.num_heads + head, top + log(total));
        }
      }
      slice = C::next_slice(slice);
    } while (slice < p.width);
  }
}

template <class Run>
void launches_attention(const AttentionParams& p, Run&& run) {
  const bool aligned = is_aligned(p.query, p.dtype) && is_aligned(p.value, p.dtype) &&
                       is_aligned(p.relation, p.dtype);
  with_head_shape(p.dtype, p.width, p.num_heads, aligned, [&](auto element, auto shape) {
    using T = decltype(element);
    using S = decltype(shape);
    run(attention_kernel<T, S>, grid_for_shares<S>(p.plan), p);
    run(attention_hub_kernel<T, S>, grid_for_rows<S>(p.plan.num_hubs), p);
  });
}

}  // namespace kgrec::cuda
