// Weighted sums over the edges of a row, compiled once for every instruction set. One kernel serves
// relation mean, both directions of weighted aggregation, and the gradients of all three.

namespace {

// out[row] = scale * sum over edges of relation[rel] * (weight * source_scale[idx] * x[idx])
template <class S>
void aggregate_part(const AggregateParams& p, const S& shape, int64_t part, Scratch<S>& scratch) {
  using T = typename S::Element;
  using A = typename S::A;
  using V = typename S::V;
  constexpr int64_t kAhead = 12;
  constexpr int kLongestRun = 64;  // sums of sums lose less than one long sum
  const OrderView& order = p.order;
  const T* x = static_cast<const T*>(p.x.data);
  const T* relation = static_cast<const T*>(p.relation.data);
  const A* weight = static_cast<const A*>(p.weight);
  const A* source_scale = static_cast<const A*>(p.source_scale);
  const int64_t last_edge = order.num_edges - 1;

  for_stretches(order, part, [&](int64_t row, int64_t begin, int64_t end, int64_t piece) {
    V* memory = scratch.memory;
    typename S::Row sum(shape, memory), run(shape, memory);
    int64_t count = 0;
    int64_t previous = -1;
    int in_run = 0;
    const auto end_run = [&] {
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
    for (int64_t e = begin; e < end; ++e) {
      const int64_t ahead = std::min(e + kAhead, last_edge);
      if (order.mask == nullptr || order.mask[ahead] != 0) {
        prefetch_row(x + order.idx[ahead] * p.x.stride, p.width * sizeof(T));
      }
      if (order.mask != nullptr && order.mask[e] == 0) {
        continue;
      }
      if (in_run == kLongestRun ||
          (relation != nullptr && in_run > 0 && order.rel[e] != order.rel[previous])) {
        end_run();
      }
      previous = e;
      ++in_run;
      ++count;
      A w = 1;
      if (weight != nullptr) {
        w = weight[order.pos != nullptr ? order.pos[e] : e];
      }
      if (source_scale != nullptr) {
        w *= source_scale[order.idx[e]];
      }
      const T* row_x = x + order.idx[e] * p.x.stride;
      for (int i = 0; i < shape.vectors; ++i) {
        run.v[i] += splat(w) * shape.get(row_x, i);
      }
    }
    if (in_run > 0) {
      end_run();
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
    if (p.inverse_count != nullptr) {
      const A inverse = A(1) / A(std::max<int64_t>(count, 1));
      static_cast<A*>(p.inverse_count)[row] = inverse;
      for (int i = 0; i < shape.vectors; ++i) {
        sum.v[i] *= splat(inverse);
      }
    }
    T* out = static_cast<T*>(p.out) + row * p.width;
    for (int i = 0; i < shape.vectors; ++i) {
      shape.put(out, i, sum.v[i]);
    }
  });
}

// Adds up the shares of rows that several parts hold, in the order of the parts.
template <class T>
void merge_shares(const AggregateParams& p) {
  using A = acc_t<T>;
  const A* partial = static_cast<const A*>(p.partial);
  const AnyShape<T> shape(p.width, 1);
  const int64_t pieces = 2 * p.order.num_parts;
  Scratch<AnyShape<T>> scratch(shape, 1);
  Vec<A>* sum = scratch.memory;
  for (int64_t i = 0; i < pieces;) {
    const int64_t row = p.partial_row[i];
    if (row < 0) {
      ++i;
      continue;
    }
    std::fill(sum, sum + shape.vectors, Vec<A>{});
    int64_t count = 0;
    for (; i < pieces && (p.partial_row[i] == row || p.partial_row[i] < 0); ++i) {
      if (p.partial_row[i] < 0) {
        continue;
      }
      count += p.partial_count[i];
      for (int k = 0; k < shape.vectors; ++k) {
        sum[k] += shape.get(partial + i * p.width, k);
      }
    }
    A scale = 1;
    if (p.inverse_count != nullptr) {
      scale = A(1) / A(std::max<int64_t>(count, 1));
      static_cast<A*>(p.inverse_count)[row] = scale;
    }
    for (int k = 0; k < shape.vectors; ++k) {
      shape.put(static_cast<T*>(p.out) + row * p.width, k, sum[k] * splat(scale));
    }
  }
}

template <class T>
void aggregate_typed(const AggregateParams& p, int64_t begin, int64_t end) {
  with_row_shape<T>(p.width, [&](const auto& shape) {
    Scratch scratch(shape, 2);
    for (int64_t part = begin; part < end; ++part) {
      aggregate_part(p, shape, part, scratch);
    }
  });
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
        if (p.order.mask == nullptr || p.order.mask[e] != 0) {
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

void aggregate_merge(const AggregateParams& p) {
  for_dtype(p.dtype, [&](auto t) { merge_shares<decltype(t)>(p); });
}

void edge_dot_parts(const EdgeDotParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) { edge_dot_typed<decltype(t)>(p, begin, end); });
}
