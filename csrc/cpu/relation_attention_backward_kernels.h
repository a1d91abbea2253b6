// Relation attention backward, compiled once for every instruction set: the gradients ds_e of the
// scores, which need X alone, and the share of the relations that comes with them. The rest are
// sums over rows and columns, weighted by a_e or ds_e: the row kernel of aggregate.h.

#include "cpu/block_kernels.h"
#include "cpu/edge_lanes.h"

namespace {

// The only unmasked edge of a row, -1 where there are more or none.
KGREC_INLINE int64_t single_edge(const OrderView& order, int64_t row) {
  const int64_t begin = order.ptr[row], end = order.ptr[row + 1];
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

template <class S>
void score_grads_part(
    const AttentionBackwardParams& p, const S& shape, int64_t part, Scratch<S>& scratch,
    HeadLanes<S>& lanes, typename S::A* delta) {
  using A = typename S::A;
  using V = typename S::V;
  const int heads = shape.heads;
  const A* weight = static_cast<const A*>(p.weight);
  A* score_grad = static_cast<A*>(p.score_grad);
  KeptEdges kept(p.row);
  for_stretches(p.row, part, [&](int64_t row, int64_t begin, int64_t end, int64_t piece) {
    if (begin == end) {
      return;
    }
    V* memory = scratch.memory;
    typename S::Row grad_key(shape, memory), values(shape, memory);
    A* const grad = score_grad + begin * heads;
    const int64_t found =
        write_weight_grads(p, shape, row, begin, end, grad, grad_key, values, kept);
    spread_kept(p.row, begin, end, heads, found, grad);
    // ds_e = a_e (da_e - delta), delta = dO . O - dlse
    const A* out = static_cast<const A*>(p.out) + row * p.width;
    const A* grad_out = static_cast<const A*>(p.grad_out.data) + row * p.grad_out.stride;
    const A* grad_lse = static_cast<const A*>(p.grad_lse) + row * heads;
    for (int k = 0; k < heads; ++k) {
      V sum{};
      for (int i = k * shape.head_vectors; i < (k + 1) * shape.head_vectors; ++i) {
        sum += shape.get(out, i) * shape.get(grad_out, i);
      }
      delta[k] = hsum<A>(sum) - grad_lse[k];
    }
    lanes.spread(delta);
    for_vectors<A>((end - begin) * heads, [&](int64_t i, int n) {
      const V a = load_n(weight + begin * heads + i, n);
      store_n(grad + i, a * (load_n(grad + i, n) - load(lanes.at(i))), n);
    });
    // The whole row is looked at only where this may be its only edge.
    const int64_t single = found == 1 || piece >= 0 ? single_edge(p.row, row) : -1;
    if (begin <= single && single < end) {
      // The softmax of one edge is 1 whatever its score.
      std::copy(grad_lse, grad_lse + heads, score_grad + single * heads);
    }
  });
}

}  // namespace

void attention_score_grads(const AttentionBackwardParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) {
    using A = acc_t<decltype(t)>;
    with_attention_shape<decltype(t)>(p.width, p.num_heads, [&](const auto& shape) {
      Scratch scratch(shape, 2);
      HeadLanes lanes(shape);
      std::unique_ptr<A[]> delta(new A[p.num_heads]);
      for (int64_t part = begin; part < end; ++part) {
        score_grads_part(p, shape, part, scratch, lanes, delta.get());
      }
    });
  });
}
