// Gradient of the relations under relation mean, compiled once for every instruction set. The mean
// itself and the gradient of its operand are the row kernel of aggregate_kernels.h.

#include "cpu/slot_kernels.h"

namespace {

// slot += (dO[h] / count) * sum of x[t], a run of equal relation at a time.
template <class S>
void relation_grad_part(
    const RelationMeanBackwardParams& p, const S& shape, int64_t part, Scratch<S>& scratch) {
  using T = typename S::Element;
  using A = typename S::A;
  constexpr int64_t kAhead = 12;
  constexpr int64_t kLongestRun = 64;  // sums of sums lose less than one long sum
  const OrderView& order = p.order;
  const T* x = static_cast<const T*>(p.x.data);
  const A* inverse_count = static_cast<const A*>(p.inverse_count);
  for_stretches(order, part, [&](int64_t row, int64_t begin, int64_t end, int64_t) {
    const T* grad_out = static_cast<const T*>(p.grad_out.data) + row * p.grad_out.stride;
    for (int64_t e = begin; e < end;) {
      typename S::V* memory = scratch.memory;
      typename S::Row run(shape, memory);
      const int64_t first = e;
      const int64_t longest = std::min(end, first + kLongestRun);
      for (; e < longest && order.rel[e] == order.rel[first]; ++e) {
        const int64_t ahead = std::min(e + kAhead, order.num_edges - 1);
        if (order.mask == nullptr || order.mask[ahead] != 0) {
          prefetch_row(x + order.idx[ahead] * p.x.stride, p.width * sizeof(T));
        }
        if (order.mask != nullptr && order.mask[e] == 0) {
          continue;
        }
        const T* tail = x + order.idx[e] * p.x.stride;
        for (int i = 0; i < shape.vectors; ++i) {
          run.v[i] += shape.get(tail, i);
        }
      }
      A* slot = static_cast<A*>(p.slot_grad) + p.slots.slot[first] * p.width;
      for (int i = 0; i < shape.vectors; ++i) {
        const auto scaled = shape.get(grad_out, i) * splat(inverse_count[row]);
        shape.put(slot, i, shape.get(slot, i) + scaled * run.v[i]);
      }
    }
  });
}

}  // namespace

void relation_grad_parts(const RelationMeanBackwardParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    with_row_shape<T>(p.width, [&](const auto& shape) {
      Scratch scratch(shape, 1);
      for (int64_t part = begin; part < end; ++part) {
        relation_grad_part(p, shape, part, scratch);
      }
    });
  });
}

void relation_mean_reduce(const RelationMeanBackwardParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    reduce_slots<T>(
        p.slots, static_cast<const acc_t<T>*>(p.slot_grad), p.width,
        static_cast<T*>(p.grad_relation), begin, end);
  });
}
