// Loops over contiguous elements. Included by kernels, inside their namespace.

// f(i, n) for every vector of a range: n = W lanes, fewer at the end.
template <class A, class F>
KGREC_INLINE void for_vectors(int64_t size, F&& f) {
  constexpr int W = Simd<A>::W;
  int64_t i = 0;
  for (; i + W <= size; i += W) {
    f(i, W);
  }
  if (i < size) {
    f(i, int(size - i));
  }
}

template <class T>
KGREC_INLINE Vec<acc_t<T>> load_n(const T* p, int n) {
  return n == Simd<acc_t<T>>::W ? load(p) : load_first(p, n);
}

template <class T>
KGREC_INLINE void store_n(T* p, Vec<acc_t<T>> v, int n) {
  if (n == Simd<acc_t<T>>::W) {
    store(p, v);
  } else {
    store_first(p, v, n);
  }
}

// to[i] = from[i], widened or rounded where one of the two is a half type.
template <class To, class From>
KGREC_INLINE void convert(const From* from, To* to, int64_t size) {
  for_vectors<acc_t<From>>(
      size, [&](int64_t i, int n) { store_n(to + i, load_n(from + i, n), n); });
}

template <class A>
KGREC_INLINE void exp_in_place(A* x, int64_t size) {
  for_vectors<A>(size, [&](int64_t i, int n) { store_n(x + i, vexp(load_n(x + i, n)), n); });
}

// sum[j] += row[j]; narrow rows of whole types are too short for vectors.
template <class T>
KGREC_INLINE void add_row(const T* row, acc_t<T>* sum, int64_t width) {
  using A = acc_t<T>;
  if constexpr (sizeof(T) > 2) {
    constexpr int W = Simd<A>::W;
    int64_t j = 0;
    for (; j + W <= width; j += W) {
      store(sum + j, load(sum + j) + load(row + j));
    }
    for (; j < width; ++j) {
      sum[j] += row[j];
    }
  } else {
    for_vectors<A>(width, [&](int64_t j, int n) {
      store_n(sum + j, load_n(sum + j, n) + load_n(row + j, n), n);
    });
  }
}

// Elements of type T as elements of the accumulate type: themselves, or a widened copy.
template <class T>
struct Widened {
  using A = acc_t<T>;
  std::vector<A> memory;
  const A* operator()(const T* from, int64_t size) {
    if constexpr (sizeof(T) > 2) {
      return from;
    } else {
      if (int64_t(memory.size()) < size) {
        memory.resize(size);
      }
      convert(from, memory.data(), size);
      return memory.data();
    }
  }
};
