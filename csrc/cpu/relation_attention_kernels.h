// Relation attention forward, compiled once for every instruction set: the softmax weights of all
// edges, which need Q alone. What they weight, X, is summed by the row kernel of aggregate.h: two
// matrices that are read one after the other find room in a cache that does not hold both.

#include "cpu/block_kernels.h"
#include "cpu/edge_lanes.h"

namespace {

// What belongs to a row while its scores become weights.
template <class S>
struct RowSoftmax {
  using A = typename S::A;
  explicit RowSoftmax(const S& shape)
      : lanes(shape),
        sums(shape),
        memory(new A[2 * shape.heads]),
        top(memory.get()),
        total(top + shape.heads) {}
  HeadLanes<S> lanes, sums;
  std::unique_ptr<A[]> memory;
  A* top;    // largest score of each head
  A* total;  // sum of exp(score - top)
};

// Q[t] . (Q[h] * Rel[r]) / sqrt(d) by head, of the unmasked edges one after another; returns how
// many they are. Q[h] * Rel[r] is formed once a run of equal relation.
template <class S>
KGREC_INLINE int64_t write_scores(
    const AttentionParams& p, const S& shape, int64_t row, int64_t begin, int64_t end,
    typename S::A* scores, typename S::Row& key, KeptEdges& kept) {
  using T = typename S::Element;
  using A = typename S::A;
  using V = typename S::V;
  const OrderView& order = p.row;
  const T* query = static_cast<const T*>(p.query.data);
  const T* relation = static_cast<const T*>(p.relation.data);
  const T* head = query + row * p.query.stride;
  const A scale = A(1) / std::sqrt(A(p.width / p.num_heads));
  int32_t relation_id = -1;
  LaneSums<A> sums(scores);
  const int64_t found = kept.each(begin, end, [&](int64_t e, int64_t ahead) {
    prefetch_row(shape, query + order.idx[ahead] * p.query.stride);
    if (order.rel[e] != relation_id) {
      relation_id = order.rel[e];
      const T* r = relation + relation_id * p.relation.stride;
      for (int i = 0; i < shape.vectors; ++i) {
        key.v[i] = shape.get(head, i) * shape.get(r, i) * splat(scale);
      }
    }
    const T* tail = query + order.idx[e] * p.query.stride;
    for (int k = 0; k < shape.heads; ++k) {
      V sum{};
      for (int i = k * shape.head_vectors; i < (k + 1) * shape.head_vectors; ++i) {
        sum += key.v[i] * shape.get(tail, i);
      }
      sums.push(sum);
    }
  });
  sums.finish();
  return found;
}

// Turns scores into exp(score - top), and finds top and total.
template <class S>
KGREC_INLINE void exponentiate(
    const S& shape, typename S::A* scores, int64_t size, RowSoftmax<S>& softmax) {
  using A = typename S::A;
  using V = typename S::V;
  constexpr A kLeast = -std::numeric_limits<A>::infinity();
  HeadLanes<S>& lanes = softmax.lanes;
  lanes.fill(kLeast);
  for_vectors<A>(size, [&](int64_t i, int n) {
    A* top = lanes.at(i);
    store(top, vmax<A>(first_or<A>(load_n(scores + i, n), n, kLeast), load(top)));
  });
  lanes.largest(softmax.top);
  A* shift = softmax.total;
  for (int k = 0; k < shape.heads; ++k) {
    shift[k] = softmax.top[k] == kLeast ? A(0) : softmax.top[k];
  }
  lanes.spread(shift);
  HeadLanes<S>& sums = softmax.sums;
  sums.fill(0);
  for_vectors<A>(size, [&](int64_t i, int n) {
    const V score = first_or<A>(load_n(scores + i, n), n, kLeast);
    const V weight = vexp(score - load(lanes.at(i)));
    store_n(scores + i, weight, n);
    store(sums.at(i), load(sums.at(i)) + weight);
  });
  sums.total(softmax.total);
}

// Multiplies numbers per edge and head by one number per head.
template <class S>
KGREC_INLINE void multiply(
    typename S::A* weights, int64_t size, const typename S::A* factor, HeadLanes<S>& lanes) {
  using A = typename S::A;
  lanes.spread(factor);
  for_vectors<A>(size, [&](int64_t i, int n) {
    store_n(weights + i, load_n(weights + i, n) * load(lanes.at(i)), n);
  });
}

template <class A>
KGREC_INLINE A inverse(A total) {
  return total == 0 ? A(0) : A(1) / total;
}

template <class A>
KGREC_INLINE A log_sum_exp(A top, A total) {
  return total == 0 ? -std::numeric_limits<A>::infinity() : top + std::log(total);
}

// Takes the edges beside the graph into a softmax of some top and total: each has the score 0.
// Returns what the exponentials against the former top are to be multiplied by.
template <class A>
KGREC_INLINE A add_zero_edges(A count, A& top, A& total) {
  if (count == 0) {
    return 1;
  }
  const A larger = std::max(top, A(0));
  const A factor = std::exp(top - larger);
  total = total * factor + count * std::exp(-larger);
  top = larger;
  return factor;
}

template <class S>
void weights_part(
    const AttentionParams& p, const S& shape, int64_t part, Scratch<S>& scratch,
    RowSoftmax<S>& softmax) {
  using A = typename S::A;
  const int heads = shape.heads;
  A* weight = static_cast<A*>(p.weight) - p.first_weight * heads;
  const A* zero_edges = static_cast<const A*>(p.zero_edges);
  KeptEdges kept(p.row);
  for_stretches(p.row, part, [&](int64_t row, int64_t begin, int64_t end, int64_t piece) {
    typename S::V* memory = scratch.memory;
    typename S::Row key(shape, memory);
    A* const scores = weight + begin * heads;
    const int64_t found = write_scores(p, shape, row, begin, end, scores, key, kept);
    const int64_t size = found * heads;
    exponentiate(shape, scores, size, softmax);
    if (piece >= 0) {
      A* partial = static_cast<A*>(p.partial) + piece * 2 * heads;
      std::copy(softmax.top, softmax.top + heads, partial);
      std::copy(softmax.total, softmax.total + heads, partial + heads);
      p.partial_row[piece] = row;
      spread_kept(p.row, begin, end, heads, found, scores);
      return;
    }
    A* lse = static_cast<A*>(p.lse) + row * heads;
    const A count = zero_edges == nullptr ? A(0) : zero_edges[row];
    for (int k = 0; k < heads; ++k) {
      const A factor = add_zero_edges(count, softmax.top[k], softmax.total[k]);
      lse[k] = log_sum_exp(softmax.top[k], softmax.total[k]);
      softmax.total[k] = factor * inverse(softmax.total[k]);
    }
    multiply<S>(scores, size, softmax.total, softmax.lanes);
    spread_kept(p.row, begin, end, heads, found, scores);
  });
}

// Of the rows that several parts hold shares of: the log-sum-exp, and in place of each share's
// (top, total) what its weights are still to be multiplied by.
template <class A>
void join_shares(const AttentionParams& p, int64_t first_piece, int64_t last_piece) {
  const int heads = int(p.num_heads);
  A* partial = static_cast<A*>(p.partial);
  const A* zero_edges = static_cast<const A*>(p.zero_edges);
  for (int64_t first = first_piece; first < last_piece;) {
    const int64_t row = p.partial_row[first];
    int64_t last = first + 1;
    while (row >= 0 && last < last_piece &&
           (p.partial_row[last] == row || p.partial_row[last] < 0)) {
      ++last;
    }
    for (int k = 0; row >= 0 && k < heads; ++k) {
      A top = -std::numeric_limits<A>::infinity(), total = 0;
      for (int64_t s = first; s < last; ++s) {
        if (p.partial_row[s] == row) {
          top = std::max(partial[s * 2 * heads + k], top);
        }
      }
      // A share with nothing but masked edges has a top of -inf and adds nothing.
      const auto factor = [&](int64_t s) {
        const A* share = partial + s * 2 * heads + k;
        return share[heads] == 0 ? A(0) : std::exp(share[0] - top);
      };
      for (int64_t s = first; s < last; ++s) {
        if (p.partial_row[s] == row) {
          total += partial[s * 2 * heads + heads + k] * factor(s);
        }
      }
      const A count = zero_edges == nullptr ? A(0) : zero_edges[row];
      A whole_top = top;
      const A rest = add_zero_edges(count, whole_top, total) * inverse(total);
      for (int64_t s = first; s < last; ++s) {
        if (p.partial_row[s] == row) {
          partial[s * 2 * heads + k] = factor(s) * rest;
        }
      }
      static_cast<A*>(p.lse)[row * heads + k] = log_sum_exp(whole_top, total);
    }
    first = last;
  }
}

template <class S>
void finish_part(const AttentionParams& p, const S& shape, int64_t part, HeadLanes<S>& lanes) {
  using A = typename S::A;
  const int heads = shape.heads;
  A* weight = static_cast<A*>(p.weight) - p.first_weight * heads;
  const A* partial = static_cast<const A*>(p.partial);
  for (int64_t piece = 2 * part; piece < 2 * part + 2; ++piece) {
    const int64_t row = p.partial_row[piece];
    if (row >= 0) {
      const int64_t begin = std::max(p.row.ptr[row], p.row.part_edge[part]);
      const int64_t end = std::min(p.row.ptr[row + 1], p.row.part_edge[part + 1]);
      multiply<S>(
          weight + begin * heads, (end - begin) * heads, partial + piece * 2 * heads, lanes);
    }
  }
}

template <class F>
void with_shape(const AttentionParams& p, F&& run) {
  for_dtype(p.dtype, [&](auto t) { with_attention_shape<decltype(t)>(p.width, p.num_heads, run); });
}

}  // namespace

void attention_weights(const AttentionParams& p, int64_t begin, int64_t end) {
  with_shape(p, [&](const auto& shape) {
    Scratch scratch(shape, 1);
    RowSoftmax softmax(shape);
    for (int64_t part = begin; part < end; ++part) {
      weights_part(p, shape, part, scratch, softmax);
    }
  });
}

void attention_join(const AttentionParams& p, int64_t first_piece, int64_t last_piece) {
  if (p.dtype == DType::f64) {
    join_shares<double>(p, first_piece, last_piece);
  } else {
    join_shares<float>(p, first_piece, last_piece);
  }
}

void attention_finish(const AttentionParams& p, int64_t begin, int64_t end) {
  with_shape(p, [&](const auto& shape) {
    HeadLanes lanes(shape);
    for (int64_t part = begin; part < end; ++part) {
      finish_part(p, shape, part, lanes);
    }
  });
}
