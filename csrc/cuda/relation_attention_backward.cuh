// Relation attention backward over rows: a_e of each edge, anew from the log-sum-exp, the gradient
// ds_e of its score, what heads give to the gradient of the query, and the relations' shares by
// run.
#pragma once

#include "cuda/aggregate.cuh"
#include "cuda/relation_attention.cuh"
#include "cuda/relation_sums.cuh"

namespace kgrec::cuda {

// Whether the row of each group has exactly one unmasked edge: its softmax is 1 whatever the score.
// `ids` are those of the first edges of the share.
template <int kLanes>
KGREC_DEVICE bool has_single_edge(const OrderView& order, const Share& share, const EdgeIds& ids) {
  int64_t begin = share.row_begin, end = share.row_end;
  if (share.chunk >= 0) {
    begin = load(order.ptr + share.row);
    end = load(order.ptr + share.row + 1);
  }
  if (order.mask == nullptr) {
    return end - begin == 1;
  }
  int count = 0;
  const unsigned kept = __ballot_sync(kFullMask, ids.idx >= 0);
  if (!share.together) {
    count = __popc(kept & share.mask);
    begin += kLanes;
  }
  bool looks = begin < end && count < 2;
  while (__any_sync(kFullMask, looks)) {
    const int64_t e = begin + share.lane;
    const bool more = looks && e < end && load(order.mask + e) != 0;
    count += __popc(__ballot_sync(kFullMask, more) & share.mask);
    begin += kLanes;
    looks = looks && begin < end && count < 2;
  }
  return count == 1;
}

// What the edges of a share of a row are judged by.
template <class H, class A>
struct RowGrads {
  LaneValues<H, A> query{}, grad{};           // Q[h], dO[h]
  A lse[H::kStates], delta[H::kStates] = {};  // delta = dO . O - dlse
};

template <class T, class H, class A>
KGREC_DEVICE RowGrads<H, A> row_grads(
    const AttentionBackwardParams& p, const H& columns, const Share& share) {
  RowGrads<H, A> row;
  const bool there = share.begin < share.end;
  const T* grad = matrix_row<T>(p.grad_out, share.row);
  const A* out = static_cast<const A*>(p.out) + share.row * p.width;
  if (there) {
    row.query = lane_values<T>(columns, matrix_row<T>(p.query, share.row));
    row.grad = lane_values<T>(columns, grad);
    if constexpr (H::kWhole) {
      add_products(row.grad, lane_values<A>(columns, out), row.delta);
    } else {
      columns.for_head([&](int64_t c) { row.delta[0] += widen(load(grad + c)) * load(out + c); });
    }
  }
  columns.sum_heads(row.delta);
#pragma unroll
  for (int k = 0; k < H::kStates; ++k) {
    const int64_t at = share.row * p.num_heads + columns.head(k);
    row.lse[k] = there ? load(static_cast<const A*>(p.lse) + at) : A(0);
    row.delta[k] -= there ? load(static_cast<const A*>(p.grad_lse) + at) : A(0);
  }
  return row;
}

// a_e and ds_e by head, written so that neighbouring lanes write neighbours: a lane keeps one
// number of an edge until there is one for each lane of its group, or two where an edge has that
// many.
template <class H, class A>
struct EdgeResults {
  A first = 0, second = 0;

  KGREC_DEVICE void keep(
      const AttentionBackwardParams& p, const H& columns, const Share& share, int step,
      const A (&a)[H::kStates], const A (&ds)[H::kStates]) {
    if constexpr (H::kWhole) {
      const int per_edge = 2 * static_cast<int>(p.num_heads);
      const int number = share.lane % per_edge;
      const A of_a = columns.of_head(a, number / 2), of_ds = columns.of_head(ds, number / 2);
      const A mine = number % 2 == 0 ? of_a : of_ds;
      if (per_edge > H::kLanes) {
        const int head = (H::kLanes + share.lane) / 2;
        const A more_a = columns.of_head(a, head), more_ds = columns.of_head(ds, head);
        first = mine;
        second = number % 2 == 0 ? more_a : more_ds;
      } else if (share.lane / per_edge == step % (H::kLanes / per_edge)) {
        first = mine;
      }
    } else {
      first = a[0];
      second = ds[0];
    }
  }

  // After the edge of `step`, the last one where `ends`.
  KGREC_DEVICE void write(
      const AttentionBackwardParams& p, const H& columns, const Share& share, int64_t step,
      bool ends) {
    const int64_t per_edge = 2 * p.num_heads;
    A* const result = static_cast<A*>(p.edge_grad);
    int64_t e = share.begin + step;
    if constexpr (H::kWhole) {
      if (per_edge > H::kLanes) {
        if (e < share.end) {
          store(result + e * per_edge + share.lane, first);
          store(result + e * per_edge + H::kLanes + share.lane, second);
        }
      } else {
        const int64_t at_once = H::kLanes / per_edge;
        if ((step + 1) % at_once != 0 && !ends) {
          return;
        }
        e += share.lane / per_edge - step % at_once;
        if (e < share.end) {
          store(result + e * per_edge + share.lane % per_edge, first);
        }
      }
    } else if (e < share.end && columns.leads(0)) {
      store(result + e * per_edge + 2 * columns.head(0), first);
      store(result + e * per_edge + 2 * columns.head(0) + 1, second);
    }
    first = second = 0;
  }
};

// This lane's part of the sum over each head of factor * left * middle * right, rounded as if with
// a key of the first three. left(v, values) and middle(v, values) give a vector.
template <class H, class A, class G, class F>
KGREC_DEVICE void add_keyed_products(
    G&& left, F&& middle, const LaneValues<H, A>& right, A factor, A (&sum)[H::kStates]) {
#pragma unroll
  for (int v = 0; v < H::kVectors; ++v) {
    A first[H::kSize], second[H::kSize];
    left(v, first);
    middle(v, second);
#pragma unroll
    for (int i = 0; i < H::kSize; ++i) {
      const A key = first[i] * second[i] * factor;
      sum[H::state(v)] += key * right[v][i];
    }
  }
}

// The edges of a share; leaves what it gives to dQ[h] in grad_query.
template <class T, class H, class A>
KGREC_DEVICE void attend_backward(
    const AttentionBackwardParams& p, const H& columns, const Share& share, int steps, A* shared,
    LaneValues<H, A>& grad_query) {
  constexpr int kLanes = H::kLanes;
  // Where a row takes too many registers, those of Q[h], dO[h] and Rel[r] are read for each edge.
  constexpr bool kReads = H::kWhole && H::kVectors > 2;
  const A scale = score_scale<A>(p.width, p.num_heads);
  EdgeIds mine = ids_of(p.row, share.begin + share.lane, share.end);
  const bool single = has_single_edge<kLanes>(p.row, share, mine) &&
                      (share.row < 0 || zero_edges_of<A>(p, share.row) == A(0));
  const RowGrads<H, A> row = row_grads<T, H, A>(p, columns, share);
  RunShares<H, A> shares(p.sums, p.width, share, shared);
  EdgeResults<H, A> results;
  // Of the run at hand: its relation, and sums of a_e X[t] and ds_e Q[t].
  int32_t rel_of_run = -1;
  bool has_relation = false;
  LaneValues<H, A> relation{}, values{}, keys{};
  const auto vector_of = [&](const LaneValues<H, A>& known, const T* memory, int v, A* result) {
    if constexpr (kReads) {
      columns.read(memory, v, result);
    } else {
#pragma unroll
      for (int i = 0; i < H::kSize; ++i) {
        result[i] = known[v][i];
      }
    }
  };
  const auto relation_of = [&](int v, A* result) {
    vector_of(relation, matrix_row<T>(p.relation, rel_of_run), v, result);
  };
  const auto query_of = [&](int v, A* result) {
    vector_of(row.query, matrix_row<T>(p.query, share.row), v, result);
  };
  const auto grad_of = [&](int v, A* result) {
    vector_of(row.grad, matrix_row<T>(p.grad_out, share.row), v, result);
  };
  const auto end_run = [&](bool ends) {
    shares.add(columns, ends, rel_of_run, [&](int v, A* given) {
      A grad[H::kSize];
      query_of(v, given);
      grad_of(v, grad);
#pragma unroll
      for (int i = 0; i < H::kSize; ++i) {
        given[i] = grad[i] * values[v][i] + given[i] * (keys[v][i] * scale);
      }
    });
    if (ends) {
#pragma unroll
      for (int v = 0; v < H::kVectors; ++v) {
        A between[H::kSize];
        relation_of(v, between);
#pragma unroll
        for (int i = 0; i < H::kSize; ++i) {
          grad_query[v][i] += between[i] * (keys[v][i] * scale);
        }
      }
      relation = values = keys = LaneValues<H, A>{};
      has_relation = false;
    }
  };
  for (int first = 0; first < steps; first += kLanes) {
    if (first > 0) {
      mine = ids_of(p.row, share.begin + first + share.lane, share.end);
    }
    const int edges = steps - first < kLanes ? steps - first : kLanes;
    for (int j = 0; j < edges; ++j) {
      const int step = first + j;
      const EdgeIds edge = ids_from<kLanes>(mine, j);
      const bool there = edge.rel >= 0, kept = edge.idx >= 0;
      // Runs end at masked edges too, so that each place is written.
      const bool ends = there && rel_of_run >= 0 && edge.rel != rel_of_run;
      if (__any_sync(kFullMask, ends)) {
        end_run(ends);
      }
      rel_of_run = there ? edge.rel : rel_of_run;
      if (__any_sync(kFullMask, kept)) {
        A score[H::kStates] = {}, product[H::kStates] = {};
        LaneValues<H, A> x{}, y{};
        const T* rel = matrix_row<T>(p.relation, edge.rel);
        if (kept) {
          if (!kReads && !has_relation) {
            relation = lane_values<T>(columns, rel);
            has_relation = true;
          }
          const T* tail = matrix_row<T>(p.query, edge.idx);
          const T* value = matrix_row<T>(p.value, edge.idx);
          y = lane_values<T>(columns, tail);
          x = lane_values<T>(columns, value);
          if constexpr (H::kWhole) {
            add_keyed_products<H>(query_of, relation_of, y, scale, score);
            add_keyed_products<H>(grad_of, relation_of, x, A(1), product);
          } else {
            add_products(columns, matrix_row<T>(p.query, share.row), rel, tail, scale, score);
            add_products(columns, matrix_row<T>(p.grad_out, share.row), rel, value, A(1), product);
          }
        }
        columns.sum_heads(score);
        columns.sum_heads(product);
        A a[H::kStates], ds[H::kStates];
#pragma unroll
        for (int k = 0; k < H::kStates; ++k) {
          a[k] = kept ? exp(score[k] - row.lse[k]) : A(0);
          A change = a[k] * (product[k] - row.delta[k]);
          if (single && kept) {
            const int64_t at = share.row * p.num_heads + columns.head(k);
            change = load(static_cast<const A*>(p.grad_lse) + at);
          }
          ds[k] = kept ? change : A(0);
        }
        results.keep(p, columns, share, step, a, ds);
        if (kept) {
#pragma unroll
          for (int v = 0; v < H::kVectors; ++v) {
            const int k = H::state(v);
#pragma unroll
            for (int i = 0; i < H::kSize; ++i) {
              values[v][i] += a[k] * x[v][i];
              keys[v][i] += ds[k] * y[v][i];
            }
          }
        }
      }
      results.write(p, columns, share, step, step + 1 == steps);
    }
  }
  end_run(rel_of_run >= 0);
  shares.finish(columns, share.together);
}

template <class T, class S>
__global__ void __launch_bounds__(kSumsThreads, (kFewColumns<T, S> ? 4 : kBlocksAtOnce))
    attention_backward_kernel(const AttentionBackwardParams p) {
  using A = acc_t<T>;
  using H = HeadColumns<T, S>;
  KGREC_DYNAMIC_SHARED(A, shared);
  const auto attend_row = [&](const Share& share, int steps, A* mine) {
    for_passes<T, S>(share.lane, p.width, p.num_heads, [&](const H& columns) {
      LaneValues<H, A> grad_query{};
      attend_backward<T>(p, columns, share, steps, mine, grad_query);
      if (share.together && H::kLanes < kWarp) {
        sum_groups(grad_query);
      }
      if (share.row < 0 || (share.together && share.group > 0)) {
        return;
      }
      A* row = share.chunk < 0 ? static_cast<A*>(p.grad_query) + share.row * p.width
                               : static_cast<A*>(p.partial) + share.chunk * p.width;
      write_lanes(columns, row, grad_query);
    });
  };
  for_sums_blocks<A>(
      p.sums, p.width, static_cast<A*>(shared), [&](int64_t first, int64_t stride, A* mine) {
        for_shares_in_step<H::kLanes>(
            p.row, p.plan, work_of(p.plan, p.sums), first, stride,
            [&](const Share& share, int steps) { attend_row(share, steps, mine); });
      });
}

template <class Run>
void launches_attention_backward(const AttentionBackwardParams& p, Run&& run) {
  const bool aligned = is_aligned(p.query, p.dtype) && is_aligned(p.value, p.dtype) &&
                       is_aligned(p.relation, p.dtype) && is_aligned(p.grad_out, p.dtype);
  AggregateParams hubs;  // their chunks are added up as those of any sum
  hubs.plan = p.plan;
  hubs.dtype = p.dtype;
  hubs.width = p.width;
  hubs.wide_out = true;
  hubs.partial = p.partial;
  hubs.out = p.grad_query;
  with_head_shape(p.dtype, p.width, p.num_heads, aligned, [&](auto element, auto shape) {
    using T = decltype(element);
    using S = decltype(shape);
    launches_with_sums<HeadColumns<T, S>::kLanes>(attention_backward_kernel<T, S>, p, run);
  });
  launches_hubs(hubs, run);
}

}  // namespace kgrec::cuda
