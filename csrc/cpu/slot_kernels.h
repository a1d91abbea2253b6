// Relation gradients: each part of the work adds into slots of its own, one a relation it meets;
// then the slots of a relation are added up in the order of the parts. Included by kernels, inside
// their namespace.

template <class T>
void reduce_slots(
    const SlotView& slots, const acc_t<T>* slot_grad, int64_t width, T* grad_relation,
    int64_t begin, int64_t end) {
  const AnyShape<T> shape(width, 1);
  Scratch scratch(shape, 1);
  Vec<acc_t<T>>* sum = scratch.memory;
  for (int64_t r = begin; r < end; ++r) {
    std::fill(sum, sum + shape.vectors, Vec<acc_t<T>>{});
    for (int64_t s = slots.slot_ptr[r]; s < slots.slot_ptr[r + 1]; ++s) {
      const acc_t<T>* share = slot_grad + slots.slot_perm[s] * width;
      for (int i = 0; i < shape.vectors; ++i) {
        sum[i] += shape.get(share, i);
      }
    }
    for (int i = 0; i < shape.vectors; ++i) {
      shape.put(grad_relation + r * width, i, sum[i]);
    }
  }
}
