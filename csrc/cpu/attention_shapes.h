// Which shapes of attention get kernels of their own. Included by kernels, inside their namespace.

// Calls run(shape) with a FixedShape where the heads fill whole vectors and there is one for them,
// else with an AnyShape.
template <class T, class F>
void with_attention_shape(int64_t width, int64_t num_heads, F&& run) {
  constexpr int W = Simd<acc_t<T>>::W;
  const int64_t head_width = width / num_heads;
  const int64_t key = head_width % W == 0 ? num_heads * 100 + head_width / W : 0;
#define KGREC_SHAPE(H, HV) \
  case H * 100 + HV:       \
    return run(FixedShape<T, H, HV>(width, num_heads));
  switch (key) {
    KGREC_SHAPE(2, 1)
    KGREC_SHAPE(2, 2)
    KGREC_SHAPE(2, 4)
    KGREC_SHAPE(2, 8)
    default:
      break;
  }
  if constexpr (std::is_same_v<T, float>) {
    switch (key) {
      KGREC_SHAPE(1, 2)
      KGREC_SHAPE(1, 4)
      KGREC_SHAPE(1, 8)
      KGREC_SHAPE(1, 16)
      KGREC_SHAPE(4, 1)
      KGREC_SHAPE(4, 2)
      KGREC_SHAPE(4, 4)
      KGREC_SHAPE(8, 1)
      KGREC_SHAPE(8, 2)
      default:
        break;
    }
  }
#undef KGREC_SHAPE
  run(AnyShape<T>(width, num_heads));
}

// The edges of one row that are looked at together, with a score and a gradient per head.
template <class A>
struct EdgeBlock {
  static constexpr int kSize = 64;
  explicit EdgeBlock(int64_t num_heads)
      : memory(new A[2 * num_heads * kSize]),
        score(memory.get()),
        grad(score + num_heads * kSize) {}
  std::unique_ptr<A[]> memory;
  A* score;  // [num_heads, kSize]
  A* grad;   // [num_heads, kSize]
  int64_t edge[kSize];
  int count = 0;

  // Takes up unmasked edges from `e` on, and returns where it stopped.
  KGREC_INLINE int64_t fill(const OrderView& order, int64_t e, int64_t end) {
    count = 0;
    if (order.mask == nullptr) {
      count = int(std::min<int64_t>(end - e, kSize));
      for (int j = 0; j < count; ++j) {
        edge[j] = e + j;
      }
      return e + count;
    }
    for (; e < end && count < kSize; ++e) {
      edge[count] = e;
      count += order.mask[e] != 0;
    }
    return e;
  }
};
