// Relation attention backward, compiled once for every instruction set: the gradients ds_e of the
// scores, which need X alone, and the share of the relations that comes with them. The rest are
// sums over rows and columns, weighted by a_e or ds_e: the row kernel of aggregate.h.

#include "cpu/block_kernels.h"
#include "cpu/edge_lanes.h"

namespace {

// The only unmasked edge of [begin, end), -1 where there are more or none.
KGREC_INLINE int64_t only_kept(const OrderView& order, int64_t begin, int64_t end) {
  int64_t found = -1;
  for (int64_t e = begin; e < end; ++e) {
    if (is_kept(order, e)) {
      if (found >= 0) {
        return -1;
      }
      found = e;
    }
  }
  return found;
}

// That of a row, edges beside the graph counted.
template <class A>
KGREC_INLINE int64_t single_edge(const AttentionBackwardParams& p, int64_t row) {
  if (p.zero_edges != nullptr && static_cast<const A*>(p.zero_edges)[row] != 0) {
    return -1;
  }
  return only_kept(p.row, p.row.ptr[row], p.row.ptr[row + 1]);
}

// Writes X[t] . (dO[h] * Rel[r]) by head of the unmasked edges, one after another, and adds dO[h]
// times the sum of a_e X[t] of each run to its slot. Returns the number of these edges.
template <class S>
KGREC_INLINE int64_t write_weight_grads(
    const AttentionBackwardParams& p, const S& shape, int64_t row, int64_t begin, int64_t end,
    typename S::A* weight_grad, typename S::Row& grad_key, typename S::Row& values,
    KeptEdges& kept) {
  using T = typename S::Element;
  using A = typename S::A;
  using V = typename S::V;
  constexpr int kLongestRun = 64;  // sums of sums lose less than one long sum
  const OrderView& order = p.row;
  const T* value = static_cast<const T*>(p.value.data);
  const T* relation = static_cast<const T*>(p.relation.data);
  const A* weight = static_cast<const A*>(p.weight);
  const A* grad_out = static_cast<const A*>(p.grad_out.data) + row * p.grad_out.stride;
  A* slot = nullptr;
  int in_run = 0;
  const auto end_run = [&] {
    for (int i = 0; i < shape.vectors; ++i) {
      shape.put(slot, i, shape.get(slot, i) + shape.get(grad_out, i) * values.v[i]);
      values.v[i] = V{};
    }
    in_run = 0;
  };
  int32_t relation_id = -1;
  LaneSums<A> sums(weight_grad);
  const int64_t found = kept.each(begin, end, [&](int64_t e, int64_t ahead) {
    prefetch_row(shape, value + order.idx[ahead] * p.value.stride);
    if (in_run > 0 && (order.rel[e] != relation_id || in_run == kLongestRun)) {
      end_run();
    }
    if (order.rel[e] != relation_id) {
      relation_id = order.rel[e];
      slot = static_cast<A*>(p.slot_grad) + p.slots.slot[e] * p.width;
      const T* r = relation + relation_id * p.relation.stride;
      for (int i = 0; i < shape.vectors; ++i) {
        grad_key.v[i] = shape.get(grad_out, i) * shape.get(r, i);
      }
    }
    ++in_run;
    const T* tail = value + order.idx[e] * p.value.stride;
    for (int k = 0; k < shape.heads; ++k) {
      const V factor = splat(weight[e * shape.heads + k]);
      V sum{};
      for (int i = k * shape.head_vectors; i < (k + 1) * shape.head_vectors; ++i) {
        const V x = shape.get(tail, i);
        sum += grad_key.v[i] * x;
        values.v[i] += factor * x;
      }
      sums.push(sum);
    }
  });
  sums.finish();
  if (in_run > 0) {
    end_run();
  }
  return found;
}

// ds_e = a_e (da_e - delta) of the edges [begin, end) of a row, delta being the sum of a_e da_e
// over the row (which is dO . O) less dlse.
template <class S>
KGREC_INLINE void finish_score_grads(
    const AttentionBackwardParams& p, int64_t row, int64_t begin, int64_t end, int64_t single,
    typename S::A* delta, HeadLanes<S>& lanes) {
  using A = typename S::A;
  using V = typename S::V;
  const int heads = lanes.heads;
  const A* weight = static_cast<const A*>(p.weight) + begin * heads;
  A* grad = static_cast<A*>(p.score_grad) + begin * heads;
  const auto grad_lse = [&](int k) {
    return p.grad_lse == nullptr ? A(0) : static_cast<const A*>(p.grad_lse)[row * heads + k];
  };
  for (int k = 0; k < heads; ++k) {
    delta[k] -= grad_lse(k);
  }
  lanes.spread(delta);
  for_vectors<A>((end - begin) * heads, [&](int64_t i, int n) {
    const V a = load_n(weight + i, n);
    store_n(grad + i, a * (load_n(grad + i, n) - load(lanes.at(i))), n);
  });
  if (begin <= single && single < end) {
    // The softmax of one edge is 1 whatever its score.
    for (int k = 0; k < heads; ++k) {
      grad[(single - begin) * heads + k] = grad_lse(k);
    }
  }
}

template <class S>
void score_grads_part(
    const AttentionBackwardParams& p, const S& shape, int64_t part, Scratch<S>& scratch,
    HeadLanes<S>& lanes, typename S::A* delta) {
  using A = typename S::A;
  using V = typename S::V;
  const int heads = shape.heads;
  KeptEdges kept(p.row);
  for_stretches(p.row, part, [&](int64_t row, int64_t begin, int64_t end, int64_t piece) {
    if (begin == end) {
      return;
    }
    V* memory = scratch.memory;
    typename S::Row grad_key(shape, memory), values(shape, memory);
    A* const grad = static_cast<A*>(p.score_grad) + begin * heads;
    const int64_t found =
        write_weight_grads(p, shape, row, begin, end, grad, grad_key, values, kept);
    spread_kept(p.row, begin, end, heads, found, grad);
    const A* weight = static_cast<const A*>(p.weight) + begin * heads;
    lanes.fill(0);
    for_vectors<A>((end - begin) * heads, [&](int64_t i, int n) {
      A* sum = lanes.at(i);
      store(sum, load(sum) + load_n(weight + i, n) * load_n(grad + i, n));
    });
    lanes.total(delta);
    if (piece >= 0) {
      std::copy(delta, delta + heads, static_cast<A*>(p.partial) + piece * heads);
      p.partial_row[piece] = row;
      return;
    }
    const int64_t single = found == 1 ? single_edge<A>(p, row) : -1;
    finish_score_grads(p, row, begin, end, single, delta, lanes);
  });
}

// Gives every share of a row that several parts hold the sum over all of them, in their order.
template <class A>
void join_deltas(const AttentionBackwardParams& p) {
  const int64_t pieces = 2 * p.row.num_parts, heads = p.num_heads;
  A* partial = static_cast<A*>(p.partial);
  for (int64_t first = 0, last; first < pieces; first = last) {
    const int64_t row = p.partial_row[first];
    for (last = first + 1; row >= 0 && last < pieces; ++last) {
      if (p.partial_row[last] >= 0 && p.partial_row[last] != row) {
        break;
      }
    }
    for (int64_t k = 0; row >= 0 && k < heads; ++k) {
      A total = 0;
      for (int64_t s = first; s < last; ++s) {
        total += p.partial_row[s] == row ? partial[s * heads + k] : A(0);
      }
      for (int64_t s = first; s < last; ++s) {
        partial[s * heads + k] = total;
      }
    }
  }
}

template <class S>
void finish_shares(
    const AttentionBackwardParams& p, const S& shape, int64_t part, HeadLanes<S>& lanes,
    typename S::A* delta) {
  using A = typename S::A;
  for (int64_t piece = 2 * part; piece < 2 * part + 2; ++piece) {
    const int64_t row = p.partial_row[piece];
    if (row >= 0) {
      const int64_t begin = std::max(p.row.ptr[row], p.row.part_edge[part]);
      const int64_t end = std::min(p.row.ptr[row + 1], p.row.part_edge[part + 1]);
      const A* total = static_cast<const A*>(p.partial) + piece * shape.heads;
      std::copy(total, total + shape.heads, delta);
      // Many parts may share a row: few of them look at the whole of it.
      const bool one = only_kept(p.row, begin, end) >= 0;
      const int64_t single = one ? single_edge<A>(p, row) : -1;
      finish_score_grads(p, row, begin, end, single, delta, lanes);
    }
  }
}

// run(shape, lanes, delta) with what parts of the work share.
template <class F>
void with_head_lanes(const AttentionBackwardParams& p, F&& run) {
  for_dtype(p.dtype, [&](auto t) {
    using A = acc_t<decltype(t)>;
    with_attention_shape<decltype(t)>(p.width, p.num_heads, [&](const auto& shape) {
      HeadLanes lanes(shape);
      std::unique_ptr<A[]> delta(new A[p.num_heads]);
      run(shape, lanes, delta.get());
    });
  });
}

}  // namespace

void attention_score_grads(const AttentionBackwardParams& p, int64_t begin, int64_t end) {
  with_head_lanes(p, [&](const auto& shape, auto& lanes, auto* delta) {
    Scratch scratch(shape, 2);
    for (int64_t part = begin; part < end; ++part) {
      score_grads_part(p, shape, part, scratch, lanes, delta);
    }
  });
}

void attention_join_deltas(const AttentionBackwardParams& p) {
  p.dtype == DType::f64 ? join_deltas<double>(p) : join_deltas<float>(p);
}

void attention_finish_shares(const AttentionBackwardParams& p, int64_t begin, int64_t end) {
  with_head_lanes(p, [&](const auto& shape, auto& lanes, auto* delta) {
    for (int64_t part = begin; part < end; ++part) {
      finish_shares(p, shape, part, lanes, delta);
    }
  });
}
