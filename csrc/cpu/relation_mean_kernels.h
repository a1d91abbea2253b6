// The last step of relation mean's gradient, compiled once for every instruction set. All else is
// the row kernel of aggregate.h.

#include "cpu/slot_kernels.h"

void relation_mean_reduce(const RelationReduceParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    reduce_slots<T>(
        p.slots, static_cast<const acc_t<T>*>(p.slot_grad), p.width,
        static_cast<T*>(p.grad_relation), begin, end);
  });
}
