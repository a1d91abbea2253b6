// Rationale scores, compiled once for every instruction set. The mean over heads of the per-head
// sums is one sum over the whole row, so the number of heads only enters the scale.

#include "cpu/block_kernels.h"

namespace {

// exp(logit - top) summed over unmasked edges, and their number; masked logits are -inf.
template <class A>
struct RowSoftmax {
  A top = -std::numeric_limits<A>::infinity();
  A total = 0;
  A degree = 0;
};

template <class S>
KGREC_INLINE void write_logits(
    const RationaleParams& p, const S& shape, int64_t row, int64_t begin, int64_t end,
    typename S::Row& key, KeptEdges& kept) {
  using T = typename S::Element;
  using A = typename S::A;
  using V = typename S::V;
  const OrderView& order = p.order;
  const T* query = static_cast<const T*>(p.query.data);
  const T* relation = static_cast<const T*>(p.relation.data);
  const T* head = query + row * p.query.stride;
  const A scale = A(1) / (A(p.num_heads) * std::sqrt(A(p.width / p.num_heads)));
  A* logits = static_cast<A*>(p.logits);
  int32_t relation_id = -1;
  for (int i = 0; i < shape.vectors; ++i) {
    key.v[i] = shape.get(head, i) * splat(scale);
  }
  if (order.mask != nullptr) {
    std::fill(logits + begin, logits + end, -std::numeric_limits<A>::infinity());
  }
  kept.each(begin, end, [&](int64_t e, int64_t ahead) {
    prefetch_row(shape, query + order.idx[ahead] * p.query.stride);
    if (relation != nullptr && order.rel[e] != relation_id) {
      relation_id = order.rel[e];
      const T* r = relation + relation_id * p.relation.stride;
      for (int i = 0; i < shape.vectors; ++i) {
        key.v[i] = shape.get(head, i) * shape.get(r, i) * splat(scale);
      }
    }
    const T* tail = query + order.idx[e] * p.query.stride;
    V sum{};
    for (int i = 0; i < shape.vectors; ++i) {
      sum += key.v[i] * shape.get(tail, i);
    }
    logits[e] = hsum<A>(sum);
  });
}

// Weights are found anew in the second sweep, so that masked edges cost no memory beside logits.
template <class A>
KGREC_INLINE RowSoftmax<A> look_at(const RationaleParams& p, int64_t begin, int64_t end) {
  constexpr A kLeast = -std::numeric_limits<A>::infinity();
  const A* logits = static_cast<const A*>(p.logits);
  RowSoftmax<A> softmax;
  for (int64_t e = begin; e < end; ++e) {
    const bool kept = p.order.mask == nullptr || p.order.mask[e] != 0;
    softmax.degree += kept;
    softmax.top = kept ? std::max(logits[e], softmax.top) : softmax.top;
  }
  Vec<A> total{};
  for_vectors<A>(end - begin, [&](int64_t i, int n) {
    const Vec<A> logit = first_or<A>(load_n(logits + begin + i, n), n, kLeast);
    total += vexp(logit - splat(softmax.top));
  });
  softmax.total = hsum<A>(total);
  return softmax;
}

template <class A>
KGREC_INLINE void write_scores(
    const RationaleParams& p, int64_t begin, int64_t end, const RowSoftmax<A>& softmax) {
  const A factor = softmax.degree / softmax.total;
  const A* logits = static_cast<const A*>(p.logits) + begin;
  A* scores = static_cast<A*>(p.scores) + begin;
  for_vectors<A>(end - begin, [&](int64_t i, int n) {
    store_n(scores + i, vexp(load_n(logits + i, n) - splat(softmax.top)) * splat(factor), n);
  });
  if (factor != factor) {  // no edge is kept, or NaN has spread to those that are not
    for (int64_t e = begin; e < end; ++e) {
      scores[e - begin] = is_kept(p.order, e) ? scores[e - begin] : A(0);
    }
  }
}

template <class S>
void score_part(const RationaleParams& p, const S& shape, int64_t part, Scratch<S>& scratch) {
  using A = typename S::A;
  KeptEdges kept(p.order);
  for_stretches(p.order, part, [&](int64_t row, int64_t begin, int64_t end, int64_t piece) {
    if (begin == end) {
      return;
    }
    typename S::V* memory = scratch.memory;
    typename S::Row key(shape, memory);
    write_logits(p, shape, row, begin, end, key, kept);
    const RowSoftmax<A> softmax = look_at<A>(p, begin, end);
    if (piece < 0) {
      write_scores(p, begin, end, softmax);
    } else {
      static_cast<RowSoftmax<A>*>(p.partial)[piece] = softmax;
      p.partial_row[piece] = row;
    }
  });
}

// Gives every share of a row the softmax of the whole row.
template <class A>
void join_shares(const RationaleParams& p) {
  RowSoftmax<A>* partial = static_cast<RowSoftmax<A>*>(p.partial);
  const int64_t pieces = 2 * p.order.num_parts;
  for (int64_t first = 0; first < pieces;) {
    const int64_t row = p.partial_row[first];
    int64_t last = first + 1;
    RowSoftmax<A> whole;
    while (row >= 0 && last < pieces && (p.partial_row[last] == row || p.partial_row[last] < 0)) {
      ++last;
    }
    for (int64_t s = first; s < last; ++s) {
      if (row >= 0 && p.partial_row[s] == row && partial[s].degree > 0) {
        whole.top = std::max(partial[s].top, whole.top);
      }
    }
    for (int64_t s = first; s < last; ++s) {
      if (row >= 0 && p.partial_row[s] == row && partial[s].degree > 0) {
        whole.total += partial[s].total * std::exp(partial[s].top - whole.top);
        whole.degree += partial[s].degree;
      }
    }
    std::fill(partial + first, partial + last, whole);
    first = last;
  }
}

}  // namespace

void rationale_parts(const RationaleParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    with_row_shape<T>(p.width, [&](const auto& shape) {
      Scratch scratch(shape, 1);
      for (int64_t part = begin; part < end; ++part) {
        score_part(p, shape, part, scratch);
      }
    });
  });
}

void rationale_merge(const RationaleParams& p) {
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    join_shares<A>(p);
    for (int64_t part = 0; part < p.order.num_parts; ++part) {
      for_stretches(p.order, part, [&](int64_t, int64_t begin, int64_t end, int64_t piece) {
        if (piece >= 0) {
          write_scores(p, begin, end, static_cast<const RowSoftmax<A>*>(p.partial)[piece]);
        }
      });
    }
  };
  p.dtype == DType::f64 ? run(double{}) : run(float{});
}
