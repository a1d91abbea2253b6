// Weighted sums over the edges of a row, compiled once for every instruction set. One kernel serves
// relation mean, relation attention, both directions of weighted aggregation, and their gradients.

namespace {

// From the sum of a row to its result.
template <class S>
KGREC_INLINE void finish_row(
    const AggregateParams& p, const S& shape, int64_t row, int64_t count,
    const typename S::V* sum) {
  using T = typename S::Element;
  using A = typename S::A;
  using V = typename S::V;
  A scale = A(p.scale);
  if (p.inverse_count != nullptr) {
    const A inverse = A(1) / A(std::max<int64_t>(count, 1));
    static_cast<A*>(p.inverse_count)[row] = inverse;
    scale *= inverse;
  }
  if (p.row_scale != nullptr) {
    scale *= static_cast<const A*>(p.row_scale)[row];
  }
  const A* addend = row < p.addend_rows ? static_cast<const A*>(p.addend) + row * p.width : nullptr;
  if (count == 0 && addend != nullptr && addend == static_cast<const A*>(p.out) + row * p.width) {
    return;  // nothing is added to what is there
  }
  for (int i = 0; i < shape.vectors; ++i) {
    V result = sum[i] * splat(scale);
    if (addend != nullptr) {
      result += shape.get(addend, i);
    }
    if (p.wide_out) {
      shape.put(static_cast<A*>(p.out) + row * p.width, i, result);
    } else {
      shape.put(static_cast<T*>(p.out) + row * p.width, i, result);
    }
  }
}

// X is the type of x: the element type, or the one it is added up in.
template <class X, class S>
void aggregate_part(const AggregateParams& p, const S& shape, int64_t part, Scratch<S>& scratch) {
  using T = typename S::Element;
  using A = typename S::A;
  using V = typename S::V;
  constexpr int kLongestRun = 64;  // sums of sums lose less than one long sum
  const OrderView& order = p.order;
  const X* x = static_cast<const X*>(p.x.data);
  const T* relation = static_cast<const T*>(p.relation.data);
  const A* weight = static_cast<const A*>(p.weight) - p.first_weight * p.num_heads;
  const A* source_scale = static_cast<const A*>(p.source_scale);
  const A scale = A(p.scale);
  KeptEdges kept(order);

  for_stretches(order, part, [&](int64_t row, int64_t begin, int64_t end, int64_t piece) {
    V* memory = scratch.memory;
    typename S::Row sum(shape, memory), run(shape, memory);
    int64_t previous = -1;
    int in_run = 0;
    const auto end_run = [&] {
      if (p.slot_grad != nullptr) {
        const T* left = static_cast<const T*>(p.left.data) + row * p.left.stride;
        const A* left_scale = static_cast<const A*>(p.left_scale);
        const A factor = left_scale != nullptr ? scale * left_scale[row] : scale;
        A* slot = static_cast<A*>(p.slot_grad) + p.slots.slot[previous] * p.width;
        for (int i = 0; i < shape.vectors; ++i) {
          const V share = shape.get(left, i) * splat(factor) * run.v[i];
          shape.put(slot, i, shape.get(slot, i) + share);
        }
      }
      if (relation != nullptr) {
        const T* r = relation + order.rel[previous] * p.relation.stride;
        for (int i = 0; i < shape.vectors; ++i) {
          sum.v[i] += run.v[i] * shape.get(r, i);
          run.v[i] = V{};
        }
      } else {
        for (int i = 0; i < shape.vectors; ++i) {
          sum.v[i] += run.v[i];
          run.v[i] = V{};
        }
      }
      in_run = 0;
    };
    const int64_t count = kept.each(begin, end, [&](int64_t e, int64_t ahead) {
      prefetch_row(shape, x + order.idx[ahead] * p.x.stride);
      if (order.pos != nullptr && p.weight != nullptr) {
        __builtin_prefetch(weight + int64_t(order.pos[ahead]) * shape.heads);
      }
      if (in_run == kLongestRun ||
          (order.rel != nullptr && in_run > 0 && order.rel[e] != order.rel[previous])) {
        end_run();
      }
      previous = e;
      ++in_run;
      const X* row_x = x + order.idx[e] * p.x.stride;
      const A* w = weight + (order.pos != nullptr ? order.pos[e] : e) * shape.heads;
      for (int k = 0; k < shape.heads; ++k) {
        A factor = p.weight != nullptr ? w[k] : A(1);
        if (source_scale != nullptr) {
          factor *= source_scale[order.idx[e]];
        }
        for (int i = k * shape.head_vectors; i < (k + 1) * shape.head_vectors; ++i) {
          run.v[i] += splat(factor) * shape.get(row_x, i);
        }
      }
    });
    if (in_run > 0) {
      end_run();
    }
    if (p.out == nullptr) {
      return;
    }
    if (piece >= 0) {
      A* partial = static_cast<A*>(p.partial) + piece * p.width;
      for (int i = 0; i < shape.vectors; ++i) {
        shape.put(partial, i, sum.v[i]);
      }
      p.partial_row[piece] = row;
      p.partial_count[piece] = count;
      return;
    }
    finish_row(p, shape, row, count, sum.v);
  });
}

// Adds up the shares of rows that several parts hold, in the order of the parts.
template <class T>
void merge_shares(const AggregateParams& p, int64_t first_piece, int64_t last_piece) {
  using A = acc_t<T>;
  const A* partial = static_cast<const A*>(p.partial);
  const AnyShape<T> shape(p.width, 1);
  Scratch<AnyShape<T>> scratch(shape, 1);
  Vec<A>* sum = scratch.memory;
  for (int64_t i = first_piece; i < last_piece;) {
    const int64_t row = p.partial_row[i];
    if (row < 0) {
      ++i;
      continue;
    }
    std::fill(sum, sum + shape.vectors, Vec<A>{});
    int64_t count = 0;
    for (; i < last_piece && (p.partial_row[i] == row || p.partial_row[i] < 0); ++i) {
      if (p.partial_row[i] < 0) {
        continue;
      }
      count += p.partial_count[i];
      for (int k = 0; k < shape.vectors; ++k) {
        sum[k] += shape.get(partial + i * p.width, k);
      }
    }
    finish_row(p, shape, row, count, sum);
  }
}

template <class T>
void aggregate_typed(const AggregateParams& p, int64_t begin, int64_t end) {
  const auto run = [&](const auto& shape) {
    Scratch scratch(shape, 2);
    for (int64_t part = begin; part < end; ++part) {
      if (p.wide_x) {
        aggregate_part<acc_t<T>>(p, shape, part, scratch);
      } else {
        aggregate_part<T>(p, shape, part, scratch);
      }
    }
  };
  if (p.num_heads == 1) {
    with_row_shape<T>(p.width, run);
  } else {
    with_attention_shape<T>(p.width, p.num_heads, run);
  }
}

// The slots of relations [begin, end), added up in the order of the parts.
template <class T>
void reduce_slots_typed(const AggregateParams& p, T* grad_relation, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const A* slot_grad = static_cast<const A*>(p.slot_grad);
  const AnyShape<T> shape(p.width, 1);
  Scratch scratch(shape, 1);
  Vec<A>* sum = scratch.memory;
  for (int64_t r = begin; r < end; ++r) {
    std::fill(sum, sum + shape.vectors, Vec<A>{});
    for (int64_t s = p.slots.slot_ptr[r]; s < p.slots.slot_ptr[r + 1]; ++s) {
      const A* share = slot_grad + p.slots.slot_perm[s] * p.width;
      for (int i = 0; i < shape.vectors; ++i) {
        sum[i] += shape.get(share, i);
      }
    }
    for (int i = 0; i < shape.vectors; ++i) {
      shape.put(grad_relation + r * p.width, i, sum[i]);
    }
  }
}

// out[e] = sum(row_side[row] * col_side[idx]) for every edge of a part, 0 where it is masked.
template <class T>
void edge_dot_typed(const EdgeDotParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const AnyShape<T> shape(p.width, 1);
  const T* row_side = static_cast<const T*>(p.row_side.data);
  const T* col_side = static_cast<const T*>(p.col_side.data);
  A* out = static_cast<A*>(p.out);
  for (int64_t part = begin; part < end; ++part) {
    for_stretches(p.order, part, [&](int64_t row, int64_t first, int64_t last, int64_t) {
      const T* left = row_side + row * p.row_side.stride;
      for (int64_t e = first; e < last; ++e) {
        Vec<A> sum{};
        if (is_kept(p.order, e)) {
          const T* right = col_side + p.order.idx[e] * p.col_side.stride;
          for (int i = 0; i < shape.vectors; ++i) {
            sum += shape.get(left, i) * shape.get(right, i);
          }
        }
        out[e] = hsum<A>(sum);
      }
    });
  }
}

}  // namespace

void aggregate_parts(const AggregateParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) { aggregate_typed<decltype(t)>(p, begin, end); });
}

void aggregate_merge(const AggregateParams& p, int64_t first_piece, int64_t last_piece) {
  for_dtype(p.dtype, [&](auto t) { merge_shares<decltype(t)>(p, first_piece, last_piece); });
}

void reduce_slots(const AggregateParams& p, void* grad_relation, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) {
    reduce_slots_typed(p, static_cast<decltype(t)*>(grad_relation), begin, end);
  });
}

void edge_dot_parts(const EdgeDotParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) { edge_dot_typed<decltype(t)>(p, begin, end); });
}
