// How a row of a matrix is cut into vectors, and which widths get kernels of their own. Included by
// foreach_isa.h after simd.h, inside the namespace of each instruction set.

// A row of H heads, each of HV vectors, known when compiled: accumulators live in registers. A Row,
// here and below, is a row of accumulators and starts at zero.
template <class T, int H_, int HV_>
struct FixedShape {
  using Element = T;
  using A = acc_t<T>;
  using V = Vec<A>;
  static constexpr int W = Simd<A>::W;
  static constexpr int kHeads = H_;  // as a constant, 0 where it is none
  static constexpr int heads = H_, head_vectors = HV_, vectors = H_ * HV_;
  static constexpr int64_t width = vectors * W;
  FixedShape(int64_t, int64_t) {}
  template <class U>
  KGREC_INLINE V get(const U* row, int i) const {
    return load(row + i * W);
  }
  template <class U>
  KGREC_INLINE void put(U* row, int i, V v) const {
    store(row + i * W, v);
  }
  struct Row {
    V v[vectors];
    KGREC_INLINE Row(const FixedShape&, V*&) : v{} {}
  };
};

// Any width and number of heads: each head is padded to whole vectors, accumulators live in memory.
template <class T>
struct AnyShape {
  using Element = T;
  using A = acc_t<T>;
  using V = Vec<A>;
  static constexpr int W = Simd<A>::W;
  static constexpr int kHeads = 0;
  struct Place {
    int64_t offset;  // of the vector in a row
    int count;       // elements of it that belong to the head
  };
  int64_t width;
  int heads, head_vectors, vectors;
  std::vector<Place> places;
  AnyShape(int64_t width, int64_t num_heads) : width(width), heads(int(num_heads)) {
    const int64_t head_width = width / num_heads;
    head_vectors = int((head_width + W - 1) / W);
    vectors = heads * head_vectors;
    for (int64_t head = 0; head < num_heads; ++head) {
      for (int64_t at = 0; at < head_width; at += W) {
        places.push_back({head * head_width + at, int(std::min<int64_t>(W, head_width - at))});
      }
    }
  }
  template <class U>
  KGREC_INLINE V get(const U* row, int i) const {
    const Place place = places[i];
    return place.count == W ? load(row + place.offset)
                            : load_first(row + place.offset, place.count);
  }
  template <class U>
  KGREC_INLINE void put(U* row, int i, V v) const {
    const Place place = places[i];
    if (place.count == W) {
      store(row + place.offset, v);
    } else {
      store_first(row + place.offset, v, place.count);
    }
  }
  struct Row {
    V* v;
    KGREC_INLINE Row(const AnyShape& shape, V*& scratch) : v(scratch) {
      scratch += shape.vectors;
      std::fill(v, scratch, V{});
    }
  };
};

// Whether all elements of a row are zero: NaN is not.
template <class S, class T>
KGREC_INLINE bool is_zero_row(const S& shape, const T* row) {
  using A = typename S::A;
  Ints<A> zero = ~Ints<A>{};
  for (int i = 0; i < shape.vectors; ++i) {
    zero &= shape.get(row, i) == Vec<A>{};
  }
  for (int i = 0; i < Simd<A>::W; ++i) {
    if (zero[i] == 0) {
      return false;
    }
  }
  return true;
}

// Memory for the rows of an AnyShape, one Scratch a thread; a FixedShape takes none of it.
template <class S>
struct Scratch {
  using V = typename S::V;
  Scratch(const S& shape, int rows)
      : memory(
            static_cast<V*>(
                ::operator new(sizeof(V) * shape.vectors * rows, std::align_val_t(alignof(V))))) {}
  ~Scratch() { ::operator delete(memory, std::align_val_t(alignof(V))); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  V* memory;
};

// Calls run(shape) with a FixedShape of one head for the usual widths, else with an AnyShape.
template <class T, class F>
void with_row_shape(int64_t width, F&& run) {
  constexpr int W = Simd<acc_t<T>>::W;
  switch (width % W == 0 ? width / W : 0) {
    case 2:
      return run(FixedShape<T, 1, 2>(width, 1));
    case 4:
      return run(FixedShape<T, 1, 4>(width, 1));
    case 8:
      return run(FixedShape<T, 1, 8>(width, 1));
    case 16:
      return run(FixedShape<T, 1, 16>(width, 1));
    default:
      return run(AnyShape<T>(width, 1));
  }
}

// Calls run(shape) with a FixedShape where the heads fill whole vectors and there is one for them,
// else with an AnyShape.
template <class T, class F>
void with_attention_shape(int64_t width, int64_t num_heads, F&& run) {
  constexpr int W = Simd<acc_t<T>>::W;
  const int64_t head_width = width / num_heads;
  const int64_t head_vectors = head_width % W == 0 ? head_width / W : 0;
  const int64_t key = head_vectors < 100 ? num_heads * 100 + head_vectors : 0;  // no two share one
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
