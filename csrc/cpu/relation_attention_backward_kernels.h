// Relation attention backward, compiled once for every instruction set. The row pass recomputes the
// weights a_e from the saved log-sum-exp, finds the score gradients ds_e, and from them the
// gradients of Q at the heads and of the relations; the column pass finds those at the tails.

#include "cpu/edge_block.h"
#include "cpu/slot_kernels.h"

namespace {

constexpr int64_t kAhead = 8;
constexpr int kLongestRun = 64;  // sums of sums lose less than one long sum

// With two heads, as published, what belongs to an edge is four numbers side by side, which fill
// whole vectors.
template <class S>
constexpr bool kPaired = S::kHeads == 2 && S::W % 4 == 0;

// Unmasked edges of a row, counted up to two.
KGREC_INLINE int count_to_two(const OrderView& order, int64_t row) {
  const int64_t begin = order.ptr[row], end = order.ptr[row + 1];
  if (order.mask == nullptr) {
    return int(std::min<int64_t>(end - begin, 2));
  }
  int count = 0;
  for (int64_t e = begin; e < end && count < 2; ++e) {
    count += order.mask[e] != 0;
  }
  return count;
}

// score = Q[t] . (Q[h] * Rel[r]) / sqrt(d) and grad = X[t] . (dO[h] * Rel[r]) for the block.
template <class S>
KGREC_INLINE void block_scores_and_grads(
    const AttentionBackwardParams& p, const S& shape, int64_t row, EdgeBlock<typename S::A>& block,
    typename S::Row& key, typename S::Row& grad_key, typename S::A scale) {
  using T = typename S::Element;
  using A = typename S::A;
  using V = typename S::V;
  const OrderView& order = p.row;
  const T* query = static_cast<const T*>(p.query.data);
  const T* value = static_cast<const T*>(p.value.data);
  const T* relation = static_cast<const T*>(p.relation.data);
  const T* head = query + row * p.query.stride;
  const A* grad_out = static_cast<const A*>(p.grad_out.data) + row * p.grad_out.stride;
  const int64_t row_bytes = p.width * sizeof(T);
  int32_t relation_id = -1;
  for (int j = 0; j < block.count; ++j) {
    const int64_t e = block.edge[j];
    const int64_t ahead = std::min(e + kAhead, order.num_edges - 1);
    if (order.mask == nullptr || order.mask[ahead] != 0) {
      prefetch_row(query + order.idx[ahead] * p.query.stride, row_bytes);
      prefetch_row(value + order.idx[ahead] * p.value.stride, row_bytes);
    }
    if (order.rel[e] != relation_id) {
      relation_id = order.rel[e];
      const T* r = relation + relation_id * p.relation.stride;
      for (int i = 0; i < shape.vectors; ++i) {
        const V factor = shape.get(r, i);
        key.v[i] = shape.get(head, i) * factor * splat(scale);
        grad_key.v[i] = shape.get(grad_out, i) * factor;
      }
    }
    const T* tail_query = query + order.idx[e] * p.query.stride;
    const T* tail_value = value + order.idx[e] * p.value.stride;
    if constexpr (kPaired<S>) {
      V sum[4] = {};
      for (int i = 0; i < shape.vectors; ++i) {
        const int k = i / shape.head_vectors;
        sum[k] += key.v[i] * shape.get(tail_query, i);
        sum[2 + k] += grad_key.v[i] * shape.get(tail_value, i);
      }
      hsum_four(sum[0], sum[1], sum[2], sum[3], block.pair(j));
      continue;
    }
    for (int k = 0; k < shape.heads; ++k) {
      V score{}, grad{};
      for (int i = k * shape.head_vectors; i < (k + 1) * shape.head_vectors; ++i) {
        score += key.v[i] * shape.get(tail_query, i);
        grad += grad_key.v[i] * shape.get(tail_value, i);
      }
      block.score[k * block.kSize + j] = hsum<A>(score);
      block.grad[k * block.kSize + j] = hsum<A>(grad);
    }
  }
}

// block_weights where scores and gradients stand side by side.
template <class A>
KGREC_INLINE void paired_weights(
    EdgeBlock<A>& block, const A* lse, const A* grad_lse, const A* delta, bool single, A* kept) {
  using V = Vec<A>;
  const V shift = lanes_by_bit<A>(1, splat(lse[1]), splat(lse[0]));
  const V mean = lanes_by_bit<A>(1, splat(delta[1]), splat(delta[0]));
  for (int j = 0; j < block.count; j += Simd<A>::W / 4) {
    const V both = load(block.pair(j));
    const V weight = vexp(both - shift);  // of the gradients too, for nothing
    const V grad = swap_pairs<A>(weight) * (both - mean);
    store(block.pair(j), lanes_by_bit<A>(2, grad, weight));
  }
  if (single) {
    std::copy(grad_lse, grad_lse + 2, block.pair(0) + 2);
  }
  for (int j = 0; j < block.count; ++j) {
    std::copy(block.pair(j), block.pair(j) + 4, kept + block.edge[j] * 4);
  }
}

// Replaces score by a_e and grad by ds_e, and keeps both for the column pass.
template <class S>
KGREC_INLINE void block_weights(
    const AttentionBackwardParams& p, const S& shape, int64_t row, EdgeBlock<typename S::A>& block,
    const typename S::A* delta, bool single) {
  using A = typename S::A;
  using V = typename S::V;
  const A* lse = static_cast<const A*>(p.lse) + row * p.num_heads;
  const A* grad_lse = static_cast<const A*>(p.grad_lse) + row * p.num_heads;
  A* kept = static_cast<A*>(p.edge_weight);
  if constexpr (kPaired<S>) {
    paired_weights(block, lse, grad_lse, delta, single, kept);
    return;
  }
  const int padded = (block.count + S::W - 1) / S::W * S::W;
  for (int k = 0; k < shape.heads; ++k) {
    A* score = block.score + k * block.kSize;
    A* grad = block.grad + k * block.kSize;
    for (int j = block.count; j < padded; ++j) {
      score[j] = grad[j] = 0;
    }
    for (int j = 0; j < padded; j += S::W) {
      const V weight = vexp(load(score + j) - splat(lse[k]));
      store(score + j, weight);
      store(grad + j, weight * (load(grad + j) - splat(delta[k])));
    }
    if (single) {
      grad[0] = grad_lse[k];  // the softmax of one edge is 1 whatever its score
    }
  }
  for (int j = 0; j < block.count; ++j) {
    A* edge = kept + block.edge[j] * 2 * shape.heads;
    for (int k = 0; k < shape.heads; ++k) {
      edge[k] = block.score[k * block.kSize + j];
      edge[shape.heads + k] = block.grad[k * block.kSize + j];
    }
  }
}

// grad_query += Rel[r] * sum(ds_e Q[t]) a run, and the relation's gradient falls out beside it.
template <class S>
KGREC_INLINE void block_row_grads(
    const AttentionBackwardParams& p, const S& shape, int64_t row,
    const EdgeBlock<typename S::A>& block, typename S::Row& grad_query, typename S::Row& values,
    typename S::Row& queries, typename S::A scale) {
  using T = typename S::Element;
  using A = typename S::A;
  using V = typename S::V;
  const OrderView& order = p.row;
  const T* query = static_cast<const T*>(p.query.data);
  const T* value = static_cast<const T*>(p.value.data);
  const T* relation = static_cast<const T*>(p.relation.data);
  const T* head = query + row * p.query.stride;
  const A* grad_out = static_cast<const A*>(p.grad_out.data) + row * p.grad_out.stride;
  for (int j = 0; j < block.count;) {
    const int64_t first = block.edge[j];
    const int32_t relation_id = order.rel[first];
    for (int i = 0; i < shape.vectors; ++i) {
      values.v[i] = V{};
      queries.v[i] = V{};
    }
    do {
      const int64_t tail = order.idx[block.edge[j]];
      const T* tail_query = query + tail * p.query.stride;
      const T* tail_value = value + tail * p.value.stride;
      for (int k = 0; k < shape.heads; ++k) {
        const V weight = splat(kPaired<S> ? block.pair(j)[k] : block.score[k * block.kSize + j]);
        const V grad = splat(kPaired<S> ? block.pair(j)[2 + k] : block.grad[k * block.kSize + j]);
        for (int i = k * shape.head_vectors; i < (k + 1) * shape.head_vectors; ++i) {
          values.v[i] += weight * shape.get(tail_value, i);
          queries.v[i] += grad * shape.get(tail_query, i);
        }
      }
      ++j;
    } while (j < block.count && order.rel[block.edge[j]] == relation_id);
    const T* r = relation + relation_id * p.relation.stride;
    A* slot = static_cast<A*>(p.slot_grad) + p.slots.slot[first] * p.width;
    for (int i = 0; i < shape.vectors; ++i) {
      const V scaled = queries.v[i] * splat(scale);
      grad_query.v[i] += scaled * shape.get(r, i);
      shape.put(
          slot, i,
          shape.get(slot, i) + shape.get(grad_out, i) * values.v[i] + shape.get(head, i) * scaled);
    }
  }
}

template <class S>
void row_part(
    const AttentionBackwardParams& p, const S& shape, int64_t part, Scratch<S>& scratch,
    EdgeBlock<typename S::A>& block, typename S::A* delta) {
  using A = typename S::A;
  using V = typename S::V;
  const A scale = A(1) / std::sqrt(A(p.width / p.num_heads));
  for_stretches(p.row, part, [&](int64_t row, int64_t begin, int64_t end, int64_t piece) {
    V* memory = scratch.memory;
    typename S::Row grad_query(shape, memory), one(shape, memory), other(shape, memory);
    if (begin < end) {
      const A* out = static_cast<const A*>(p.out) + row * p.width;
      const A* grad_out = static_cast<const A*>(p.grad_out.data) + row * p.grad_out.stride;
      const A* grad_lse = static_cast<const A*>(p.grad_lse) + row * p.num_heads;
      for (int k = 0; k < shape.heads; ++k) {
        V sum{};
        for (int i = k * shape.head_vectors; i < (k + 1) * shape.head_vectors; ++i) {
          sum += shape.get(out, i) * shape.get(grad_out, i);
        }
        delta[k] = hsum<A>(sum) - grad_lse[k];
      }
      const bool single = count_to_two(p.row, row) == 1;
      for (int64_t e = begin; e < end;) {
        e = block.fill(p.row, e, end);
        if (block.count > 0) {
          block_scores_and_grads(p, shape, row, block, one, other, scale);
          block_weights(p, shape, row, block, delta, single);
          block_row_grads(p, shape, row, block, grad_query, one, other, scale);
        }
      }
    }
    A* target = static_cast<A*>(p.row_grad_query) + row * p.width;
    if (piece >= 0) {
      target = static_cast<A*>(p.partial) + piece * 2 * p.width;
      p.partial_row[piece] = row;
    }
    for (int i = 0; i < shape.vectors; ++i) {
      shape.put(target, i, grad_query.v[i]);
    }
  });
}

template <class S>
void column_part(
    const AttentionBackwardParams& p, const S& shape, int64_t part, Scratch<S>& scratch) {
  using T = typename S::Element;
  using A = typename S::A;
  using V = typename S::V;
  const OrderView& order = p.col;
  const A scale = A(1) / std::sqrt(A(p.width / p.num_heads));
  const T* query = static_cast<const T*>(p.query.data);
  const T* relation = static_cast<const T*>(p.relation.data);
  const A* grad_out = static_cast<const A*>(p.grad_out.data);
  const A* edge_weight = static_cast<const A*>(p.edge_weight);
  const A* row_grad_query = static_cast<const A*>(p.row_grad_query);
  for_stretches(order, part, [&](int64_t col, int64_t begin, int64_t end, int64_t piece) {
    V* memory = scratch.memory;
    typename S::Row grad_value(shape, memory), grad_query(shape, memory);
    typename S::Row values(shape, memory), queries(shape, memory);
    int32_t relation_id = -1;
    int in_run = 0;
    const auto end_run = [&] {
      const T* r = relation + relation_id * p.relation.stride;
      for (int i = 0; i < shape.vectors; ++i) {
        const V factor = shape.get(r, i);
        grad_value.v[i] += values.v[i] * factor;
        grad_query.v[i] += queries.v[i] * factor;
        values.v[i] = queries.v[i] = V{};
      }
      in_run = 0;
    };
    for (int64_t e = begin; e < end; ++e) {
      const int64_t ahead = std::min(e + kAhead, order.num_edges - 1);
      if (order.mask == nullptr || order.mask[ahead] != 0) {
        const int64_t head = order.idx[ahead];
        prefetch_row(query + head * p.query.stride, p.width * sizeof(T));
        prefetch_row(grad_out + head * p.grad_out.stride, p.width * sizeof(A));
        __builtin_prefetch(edge_weight + int64_t(order.pos[ahead]) * 2 * shape.heads);
      }
      if (order.mask != nullptr && order.mask[e] == 0) {
        continue;
      }
      if (in_run == kLongestRun || (in_run > 0 && order.rel[e] != relation_id)) {
        end_run();
      }
      relation_id = order.rel[e];
      ++in_run;
      const int64_t head = order.idx[e];
      const T* head_query = query + head * p.query.stride;
      const A* head_grad = grad_out + head * p.grad_out.stride;
      const A* kept = edge_weight + int64_t(order.pos[e]) * 2 * shape.heads;
      for (int k = 0; k < shape.heads; ++k) {
        const V weight = splat(kept[k]), grad = splat(kept[shape.heads + k]);
        for (int i = k * shape.head_vectors; i < (k + 1) * shape.head_vectors; ++i) {
          values.v[i] += weight * shape.get(head_grad, i);
          queries.v[i] += grad * shape.get(head_query, i);
        }
      }
    }
    if (in_run > 0) {
      end_run();
    }
    if (piece >= 0) {
      A* partial = static_cast<A*>(p.partial) + piece * 2 * p.width;
      for (int i = 0; i < shape.vectors; ++i) {
        shape.put(partial, i, grad_value.v[i]);
        shape.put(partial + p.width, i, grad_query.v[i] * splat(scale));
      }
      p.partial_row[piece] = col;
      return;
    }
    T* value_out = static_cast<T*>(p.grad_value) + col * p.width;
    T* query_out = static_cast<T*>(p.grad_query) + col * p.width;
    // A column that is no row has met no row pass.
    const A* from_rows = col < p.row.num_rows ? row_grad_query + col * p.width : nullptr;
    for (int i = 0; i < shape.vectors; ++i) {
      V sum = grad_query.v[i] * splat(scale);
      if (from_rows != nullptr) {
        sum += shape.get(from_rows, i);
      }
      shape.put(value_out, i, grad_value.v[i]);
      shape.put(query_out, i, sum);
    }
  });
}

// Adds up the shares of rows or columns that several parts hold, in the order of the parts, and
// calls f(row, place in a row, sum of the first half, sum of the second half).
template <class T, class F>
void merge_halves(
    const AttentionBackwardParams& p, const AnyShape<T>& shape, int64_t pieces, F&& f) {
  using V = Vec<acc_t<T>>;
  const acc_t<T>* partial = static_cast<const acc_t<T>*>(p.partial);
  for (int64_t first = 0; first < pieces;) {
    const int64_t row = p.partial_row[first];
    int64_t last = first + 1;
    while (row >= 0 && last < pieces && (p.partial_row[last] == row || p.partial_row[last] < 0)) {
      ++last;
    }
    for (int i = 0; row >= 0 && i < shape.vectors; ++i) {
      V one{}, other{};
      for (int64_t s = first; s < last; ++s) {
        if (p.partial_row[s] == row) {
          one += shape.get(partial + s * 2 * p.width, i);
          other += shape.get(partial + s * 2 * p.width + p.width, i);
        }
      }
      f(row, i, one, other);
    }
    first = last;
  }
}

}  // namespace

void attention_row_parts(const AttentionBackwardParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    with_attention_shape<T>(p.width, p.num_heads, [&](const auto& shape) {
      Scratch scratch(shape, 3);
      EdgeBlock<acc_t<T>> block(p.num_heads);
      std::unique_ptr<acc_t<T>[]> delta(new acc_t<T>[p.num_heads]);
      for (int64_t part = begin; part < end; ++part) {
        row_part(p, shape, part, scratch, block, delta.get());
      }
    });
  });
}

void attention_row_merge(const AttentionBackwardParams& p) {
  for_dtype(p.dtype, [&](auto t) {
    using A = acc_t<decltype(t)>;
    const AnyShape<decltype(t)> shape(p.width, 1);
    A* out = static_cast<A*>(p.row_grad_query);
    merge_halves(p, shape, 2 * p.row.num_parts, [&](int64_t row, int i, Vec<A> sum, Vec<A>) {
      shape.put(out + row * p.width, i, sum);
    });
  });
}

void attention_column_parts(const AttentionBackwardParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    with_attention_shape<T>(p.width, p.num_heads, [&](const auto& shape) {
      Scratch scratch(shape, 4);
      for (int64_t part = begin; part < end; ++part) {
        column_part(p, shape, part, scratch);
      }
    });
  });
}

void attention_column_merge(const AttentionBackwardParams& p) {
  for_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    using A = acc_t<T>;
    const AnyShape<T> shape(p.width, 1);
    T* grad_value = static_cast<T*>(p.grad_value);
    T* grad_query = static_cast<T*>(p.grad_query);
    const A* from_rows = static_cast<const A*>(p.row_grad_query);
    merge_halves(
        p, shape, 2 * p.col.num_parts, [&](int64_t col, int i, Vec<A> values, Vec<A> queries) {
          if (col < p.row.num_rows) {
            queries += shape.get(from_rows + col * p.width, i);
          }
          shape.put(grad_value + col * p.width, i, values);
          shape.put(grad_query + col * p.width, i, queries);
        });
  });
}

void attention_reduce_relations(const AttentionBackwardParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    reduce_slots<T>(
        p.slots, static_cast<const acc_t<T>*>(p.slot_grad), p.width,
        static_cast<T*>(p.grad_relation), begin, end);
  });
}
