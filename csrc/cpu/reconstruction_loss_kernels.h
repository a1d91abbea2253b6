// Reconstruction of edges by chunks of slots, compiled once for every instruction set.

#include "cpu/matrix_rows.h"

namespace {

template <class T, class S>
void reconstruction_typed(
    const ReconstructionLossParams& p, const S& shape, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  using V = Vec<A>;
  const A* weight = static_cast<const A*>(p.weight);
  A* score = static_cast<A*>(p.score);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t last = std::min((chunk + 1) * kLossChunk, p.rows);
    LossSums sums;
    for (int64_t slot = chunk * kLossChunk; slot < last; ++slot) {
      const T* head = row_at<T>(p.head, slot);
      const T* tail = row_at<T>(p.tail, slot);
      const T* relation = row_at<T>(p.relation, p.ids[slot]);
      V products{};
      for (int i = 0; i < shape.vectors; ++i) {
        products += shape.get(head, i) * (shape.get(tail, i) * shape.get(relation, i));
      }
      const A x = hsum<A>(products);
      score[slot] = x;
      const double w = weight == nullptr ? 1.0 : double(weight[slot]);
      if (w != 0) {
        sums.loss += w * double(softplus(-x, std::exp(-std::abs(x))));
        sums.total += w;
      }
    }
    p.sums[chunk] = sums;
  }
}

// The derivative of the loss by the score of a slot.
template <class A>
KGREC_INLINE A slope_of(const ReconstructionLossBackwardParams& p, int64_t slot) {
  const A* weight = static_cast<const A*>(p.weight);
  const A share = A(p.scale) * (weight == nullptr ? A(1) : weight[slot]);
  const A x = static_cast<const A*>(p.score)[slot];
  return share == 0 ? A(0) : -share * Sigmoid<A>(x, std::exp(-std::abs(x))).of_minus;
}

template <class T, class S>
void reconstruction_backward_typed(
    const ReconstructionLossBackwardParams& p, const S& shape, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  using V = Vec<A>;
  for (int64_t slot = begin; slot < end; ++slot) {
    const V slope = splat(slope_of<A>(p, slot));
    const T* head = row_at<T>(p.head, slot);
    const T* tail = row_at<T>(p.tail, slot);
    const T* relation = row_at<T>(p.relation, p.ids[slot]);
    T* grad_head = static_cast<T*>(p.grad_head) + slot * p.width;
    T* grad_tail = static_cast<T*>(p.grad_tail) + slot * p.width;
    for (int i = 0; i < shape.vectors; ++i) {
      const V r = shape.get(relation, i) * slope;
      shape.put(grad_head, i, shape.get(tail, i) * r);
      shape.put(grad_tail, i, shape.get(head, i) * r);
    }
  }
}

template <class T, class S>
void reconstruction_relations_typed(
    const ReconstructionLossBackwardParams& p, const S& shape, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  using V = Vec<A>;
  Scratch<S> scratch(shape, 1);
  for (int64_t relation = begin; relation < end; ++relation) {
    T* grad = static_cast<T*>(p.grad_relation) + relation * p.width;
    int32_t slot = p.first[relation];
    if (slot < 0) {
      std::fill(grad, grad + p.width, T{});
      continue;
    }
    V* memory = scratch.memory;
    typename S::Row sum(shape, memory);
    for (; slot >= 0; slot = p.next[slot]) {
      const V slope = splat(slope_of<A>(p, slot));
      const T* head = row_at<T>(p.head, slot);
      const T* tail = row_at<T>(p.tail, slot);
      for (int i = 0; i < shape.vectors; ++i) {
        sum.v[i] += shape.get(head, i) * shape.get(tail, i) * slope;
      }
    }
    for (int i = 0; i < shape.vectors; ++i) {
      shape.put(grad, i, sum.v[i]);
    }
  }
}

}  // namespace

void reconstruction_loss_chunks(const ReconstructionLossParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    with_row_shape<T>(p.width, [&](const auto& s) { reconstruction_typed<T>(p, s, begin, end); });
  });
}

void reconstruction_loss_backward_rows(
    const ReconstructionLossBackwardParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    with_row_shape<T>(
        p.width, [&](const auto& s) { reconstruction_backward_typed<T>(p, s, begin, end); });
  });
}

void reconstruction_loss_relations(
    const ReconstructionLossBackwardParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    with_row_shape<T>(
        p.width, [&](const auto& s) { reconstruction_relations_typed<T>(p, s, begin, end); });
  });
}
