// A block of edges of one row. Included by the attention kernels, inside their namespace.

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
  // The same memory with the numbers of an edge side by side, two heads' scores, then their
  // gradients: [kSize, 4].
  KGREC_INLINE A* pair(int j) { return memory.get() + 4 * j; }
  KGREC_INLINE const A* pair(int j) const { return memory.get() + 4 * j; }
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
