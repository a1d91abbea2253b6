// Numbers per edge and head, [E, heads], the heads of an edge side by side. Included by the kernels
// of attention, inside their namespace.

// Sums over the lanes of vectors, four at a time, written one after another.
template <class A>
struct LaneSums {
  Vec<A> queue[4];
  A* out;
  int waiting = 0;
  KGREC_INLINE explicit LaneSums(A* out) : out(out) {}
  KGREC_INLINE void push(Vec<A> v) {
    queue[waiting++] = v;
    if (waiting == 4) {
      hsum_four(queue[0], queue[1], queue[2], queue[3], out);
      out += 4;
      waiting = 0;
    }
  }
  KGREC_INLINE void finish() {
    if (waiting > 0) {
      A last[4];
      std::fill(queue + waiting, queue + 4, Vec<A>{});
      hsum_four(queue[0], queue[1], queue[2], queue[3], last);
      std::copy(last, last + waiting, out);
    }
  }
};

// Row values per head, spread over vectors as numbers per edge and head lie in memory: the pattern
// repeats after `vectors` vectors.
template <class S>
struct HeadLanes {
  using A = typename S::A;
  using V = typename S::V;
  static constexpr int W = S::W;
  int heads, vectors;
  std::unique_ptr<A[]> memory;
  A* lanes;
  explicit HeadLanes(const S& shape) : heads(shape.heads), vectors(shape.heads) {
    while (vectors % 2 == 0 && (heads / vectors) * 2 <= W) {
      vectors /= 2;
    }
    memory.reset(new A[vectors * W]);
    lanes = memory.get();
  }
  // The vector that belongs to the numbers from place `at` on, a multiple of W.
  KGREC_INLINE A* at(int64_t at) const {
    return lanes + (S::kHeads == 1 || S::kHeads == 2 || vectors == 1 ? 0 : at / W % vectors * W);
  }
  KGREC_INLINE void fill(A value) { std::fill(lanes, lanes + vectors * W, value); }
  KGREC_INLINE void spread(const A* per_head) {
    if constexpr (S::kHeads == 1) {
      store(lanes, splat(per_head[0]));
    } else if constexpr (S::kHeads == 2) {
      store(lanes, lanes_by_bit<A>(1, splat(per_head[1]), splat(per_head[0])));
    } else {
      for (int i = 0; i < vectors * W; ++i) {
        lanes[i] = per_head[i % heads];
      }
    }
  }
  // The largest lane of each head, or their sum.
  KGREC_INLINE void largest(A* per_head) const {
    constexpr A kLeast = -std::numeric_limits<A>::infinity();
    if constexpr (S::kHeads == 1) {
      per_head[0] = hmax<A>(load(lanes));
    } else if constexpr (S::kHeads == 2) {
      per_head[0] = hmax<A>(lanes_by_bit<A>(1, splat(kLeast), load(lanes)));
      per_head[1] = hmax<A>(lanes_by_bit<A>(1, load(lanes), splat(kLeast)));
    } else {
      std::fill(per_head, per_head + heads, kLeast);
      for (int i = 0; i < vectors * W; ++i) {
        per_head[i % heads] = std::max(lanes[i], per_head[i % heads]);
      }
    }
  }
  KGREC_INLINE void total(A* per_head) const {
    if constexpr (S::kHeads == 1) {
      per_head[0] = hsum<A>(load(lanes));
    } else if constexpr (S::kHeads == 2) {
      per_head[0] = hsum<A>(lanes_by_bit<A>(1, V{}, load(lanes)));
      per_head[1] = hsum<A>(lanes_by_bit<A>(1, load(lanes), V{}));
    } else {
      std::fill(per_head, per_head + heads, A(0));
      for (int i = 0; i < vectors * W; ++i) {
        per_head[i % heads] += lanes[i];
      }
    }
  }
};
