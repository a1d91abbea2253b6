// Relation attention forward, compiled once for every instruction set. One pass over each row:
// scores of a block of edges, online softmax, weighted sum of the same block while it is in cache.
// Q[h] * Rel[r] is formed once a run of equal relation, and the sum of a run meets Rel[r] once.

#include "cpu/edge_block.h"

namespace {

// Edges between asking for a row of memory and using it.
constexpr int64_t kAhead = 8;

// What a row's softmax has seen so far: the largest score and the sum of exp(score - top) by head.
template <class A>
struct Softmax {
  explicit Softmax(int64_t num_heads) : memory(new A[2 * num_heads]), heads(int(num_heads)) {
    top = memory.get();
    total = top + num_heads;
  }
  KGREC_INLINE void reset() {
    std::fill(top, top + heads, -std::numeric_limits<A>::infinity());
    std::fill(total, total + heads, A(0));
  }
  std::unique_ptr<A[]> memory;
  int heads;
  A* top;
  A* total;
};

// score[k][j] = Q[t] . (Q[h] * Rel[r]) / sqrt(d) for the edges of the block.
template <class S>
KGREC_INLINE void block_scores(
    const AttentionParams& p, const S& shape, int64_t row, EdgeBlock<typename S::A>& block,
    typename S::Row& key, typename S::A scale) {
  using T = typename S::Element;
  using A = typename S::A;
  using V = typename S::V;
  const OrderView& order = p.row;
  const T* query = static_cast<const T*>(p.query.data);
  const T* value = static_cast<const T*>(p.value.data);
  const T* relation = static_cast<const T*>(p.relation.data);
  const T* head = query + row * p.query.stride;
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
        key.v[i] = shape.get(head, i) * shape.get(r, i) * splat(scale);
      }
    }
    const T* tail = query + order.idx[e] * p.query.stride;
    for (int k = 0; k < shape.heads; ++k) {
      V sum{};
      for (int i = k * shape.head_vectors; i < (k + 1) * shape.head_vectors; ++i) {
        sum += key.v[i] * shape.get(tail, i);
      }
      block.score[k * block.kSize + j] = hsum<A>(sum);
    }
  }
}

// Turns the scores of the block into exp(score - top), and rescales `sum` where top has grown.
template <class S>
KGREC_INLINE void block_softmax(
    const S& shape, EdgeBlock<typename S::A>& block, Softmax<typename S::A>& softmax,
    typename S::Row& sum) {
  using A = typename S::A;
  using V = typename S::V;
  constexpr A kInfinity = std::numeric_limits<A>::infinity();
  const int padded = (block.count + S::W - 1) / S::W * S::W;
  for (int k = 0; k < shape.heads; ++k) {
    A* score = block.score + k * block.kSize;
    std::fill(score + block.count, score + padded, -kInfinity);
    V top = load(score);
    for (int j = S::W; j < padded; j += S::W) {
      top = vmax<A>(load(score + j), top);
    }
    const A old_top = softmax.top[k];
    const A new_top = std::max(hmax<A>(top), old_top);
    if (new_top != old_top && old_top != -kInfinity) {
      const A shrink = std::exp(old_top - new_top);
      softmax.total[k] *= shrink;
      for (int i = k * shape.head_vectors; i < (k + 1) * shape.head_vectors; ++i) {
        sum.v[i] *= splat(shrink);
      }
    }
    softmax.top[k] = new_top;
    V total{};
    for (int j = 0; j < padded; j += S::W) {
      const V weight = vexp(load(score + j) - splat(new_top));
      store(score + j, weight);
      total += weight;
    }
    softmax.total[k] += hsum<A>(total);
  }
}

// sum += weighted values of the block, one multiplication by Rel[r] a run.
template <class S>
KGREC_INLINE void block_accumulate(
    const AttentionParams& p, const S& shape, const EdgeBlock<typename S::A>& block,
    typename S::Row& sum, typename S::Row& run) {
  using T = typename S::Element;
  using V = typename S::V;
  const T* value = static_cast<const T*>(p.value.data);
  const T* relation = static_cast<const T*>(p.relation.data);
  for (int j = 0; j < block.count;) {
    const int32_t relation_id = p.row.rel[block.edge[j]];
    for (int i = 0; i < shape.vectors; ++i) {
      run.v[i] = V{};
    }
    do {
      const T* tail = value + p.row.idx[block.edge[j]] * p.value.stride;
      for (int k = 0; k < shape.heads; ++k) {
        const V weight = splat(block.score[k * block.kSize + j]);
        for (int i = k * shape.head_vectors; i < (k + 1) * shape.head_vectors; ++i) {
          run.v[i] += weight * shape.get(tail, i);
        }
      }
      ++j;
    } while (j < block.count && p.row.rel[block.edge[j]] == relation_id);
    const T* r = relation + relation_id * p.relation.stride;
    for (int i = 0; i < shape.vectors; ++i) {
      sum.v[i] += run.v[i] * shape.get(r, i);
    }
  }
}

template <class S>
KGREC_INLINE void finish_row(
    const AttentionParams& p, const S& shape, int64_t row, const Softmax<typename S::A>& softmax,
    const typename S::V* sum) {
  using A = typename S::A;
  A* out = static_cast<A*>(p.out) + row * p.width;
  A* lse = static_cast<A*>(p.lse) + row * p.num_heads;
  for (int k = 0; k < shape.heads; ++k) {
    const A total = softmax.total[k];
    const A inverse = total == 0 ? A(0) : A(1) / total;
    lse[k] = total == 0 ? -std::numeric_limits<A>::infinity() : softmax.top[k] + std::log(total);
    for (int i = k * shape.head_vectors; i < (k + 1) * shape.head_vectors; ++i) {
      shape.put(out, i, sum[i] * splat(inverse));
    }
  }
}

template <class S>
void forward_part(
    const AttentionParams& p, const S& shape, int64_t part, Scratch<S>& scratch,
    EdgeBlock<typename S::A>& block, Softmax<typename S::A>& softmax) {
  using A = typename S::A;
  using V = typename S::V;
  const A scale = A(1) / std::sqrt(A(p.width / p.num_heads));
  for_stretches(p.row, part, [&](int64_t row, int64_t begin, int64_t end, int64_t piece) {
    V* memory = scratch.memory;
    typename S::Row sum(shape, memory), work(shape, memory);
    softmax.reset();
    for (int64_t e = begin; e < end;) {
      e = block.fill(p.row, e, end);
      if (block.count > 0) {
        block_scores(p, shape, row, block, work, scale);
        block_softmax(shape, block, softmax, sum);
        block_accumulate(p, shape, block, sum, work);
      }
    }
    if (piece < 0) {
      finish_row(p, shape, row, softmax, sum.v);
      return;
    }
    A* partial = static_cast<A*>(p.partial) + piece * (p.width + 2 * p.num_heads);
    for (int i = 0; i < shape.vectors; ++i) {
      shape.put(partial, i, sum.v[i]);
    }
    std::copy(softmax.top, softmax.top + p.num_heads, partial + p.width);
    std::copy(softmax.total, softmax.total + p.num_heads, partial + p.width + p.num_heads);
    p.partial_row[piece] = row;
  });
}

// Joins the shares of rows that several parts hold, in the order of the parts.
template <class T>
void forward_merge(const AttentionParams& p) {
  using A = acc_t<T>;
  const AnyShape<T> shape(p.width, p.num_heads);
  Scratch<AnyShape<T>> scratch(shape, 1);
  Vec<A>* sum = scratch.memory;
  Softmax<A> softmax(p.num_heads);
  const int64_t pieces = 2 * p.row.num_parts;
  for (int64_t i = 0; i < pieces;) {
    const int64_t row = p.partial_row[i];
    if (row < 0) {
      ++i;
      continue;
    }
    std::fill(sum, sum + shape.vectors, Vec<A>{});
    softmax.reset();
    for (; i < pieces && (p.partial_row[i] == row || p.partial_row[i] < 0); ++i) {
      if (p.partial_row[i] < 0) {
        continue;
      }
      const A* share = static_cast<const A*>(p.partial) + i * (p.width + 2 * p.num_heads);
      for (int k = 0; k < shape.heads; ++k) {
        const A share_top = share[p.width + k], share_total = share[p.width + p.num_heads + k];
        if (share_total == 0) {
          continue;  // nothing but masked edges
        }
        const A top = std::max(share_top, softmax.top[k]);
        const A shrink = softmax.total[k] == 0 ? A(0) : std::exp(softmax.top[k] - top);
        const A grow = std::exp(share_top - top);
        for (int v = k * shape.head_vectors; v < (k + 1) * shape.head_vectors; ++v) {
          sum[v] = sum[v] * splat(shrink) + shape.get(share, v) * splat(grow);
        }
        softmax.total[k] = softmax.total[k] * shrink + share_total * grow;
        softmax.top[k] = top;
      }
    }
    finish_row(p, shape, row, softmax, sum);
  }
}

}  // namespace

void attention_forward_parts(const AttentionParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    with_attention_shape<T>(p.width, p.num_heads, [&](const auto& shape) {
      Scratch scratch(shape, 2);
      EdgeBlock<acc_t<T>> block(p.num_heads);
      Softmax<acc_t<T>> softmax(p.num_heads);
      for (int64_t part = begin; part < end; ++part) {
        forward_part(p, shape, part, scratch, block, softmax);
      }
    });
  });
}

void attention_forward_merge(const AttentionParams& p) {
  for_dtype(p.dtype, [&](auto t) { forward_merge<decltype(t)>(p); });
}
