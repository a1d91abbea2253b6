// Scatter sums and softmax, compiled once for every instruction set.

namespace {
#include "cpu/block_kernels.h"

// f(e, row) for the edges whose row of the result lies in [begin, end), in their order.
template <class F>
KGREC_INLINE void for_range(const ScatterParams& p, int64_t begin, int64_t end, F&& f) {
  if (begin == 0 && end == p.size) {
    for (int64_t e = 0; e < p.rows; ++e) {
      f(e, p.index[e]);
    }
    return;
  }
  const uint64_t count = uint64_t(end - begin);
  for (int64_t e = 0; e < p.rows; ++e) {
    if (uint64_t(p.index[e] - begin) < count) {
      f(e, p.index[e]);
    }
  }
}

template <class T>
void add_range(const ScatterParams& p, const T* src, acc_t<T>* sum, int64_t begin, int64_t end) {
  std::fill(sum + begin * p.width, sum + end * p.width, acc_t<T>(0));
  if constexpr (sizeof(T) > 2) {
    if (p.width == 1) {
      for_range(p, begin, end, [&](int64_t e, int64_t row) { sum[row] += src[e]; });
      return;
    }
  }
  for_range(p, begin, end, [&](int64_t e, int64_t row) {
    add_row(src + e * p.width, sum + row * p.width, p.width);
  });
}

template <class T>
void sum_range(const ScatterParams& p, int64_t batch, int64_t begin, int64_t end) {
  const int64_t cells = p.size * p.width;
  acc_t<T>* sum = static_cast<acc_t<T>*>(p.sum) + batch * cells;
  add_range(p, static_cast<const T*>(p.src) + batch * p.rows * p.width, sum, begin, end);
  if constexpr (sizeof(T) == 2) {
    T* out = static_cast<T*>(p.out) + batch * cells;
    convert(sum + begin * p.width, out + begin * p.width, (end - begin) * p.width);
  }
}

// Columns [begin, end) of the rows of src are added to those of out.
template <class T>
void add_columns(const ScatterParams& p, bool include_self, int64_t begin, int64_t end) {
  constexpr int64_t kAhead = 8;  // rows that are asked for that long before
  T* out = static_cast<T*>(p.out);
  const T* src = static_cast<const T*>(p.src);
  const auto columns_of = [&](int64_t e) { return out + p.index[e] * p.out_stride + begin; };
  for (int64_t e = 0; !include_self && e < p.rows; ++e) {
    std::fill_n(columns_of(e), end - begin, T{});
  }
  for (int64_t e = 0; e < p.rows; ++e) {
    if (e + kAhead < p.rows) {
      const T* ahead = columns_of(e + kAhead);
      for (int64_t j = 0; j < end - begin; j += kLineBytes / int64_t(sizeof(T))) {
        __builtin_prefetch(ahead + j, 1);
      }
    }
    add_row(src + e * p.src_stride + begin, columns_of(e), end - begin);
  }
}

template <class T>
KGREC_INLINE acc_t<T> scalar(const T* p) {
  if constexpr (sizeof(T) == 2) {
    return load_first(p, 1)[0];
  } else {
    return *p;
  }
}

// A NaN may be lost in the maximum, never in the sum.
template <class T>
void top_range(const ScatterParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  A* top = static_cast<A*>(p.top);
  const T* src = static_cast<const T*>(p.src);
  std::fill(top + begin * p.width, top + end * p.width, -std::numeric_limits<A>::infinity());
  for_range(p, begin, end, [&](int64_t e, int64_t row) {
    for (int64_t j = 0; j < p.width; ++j) {
      const A x = scalar(src + e * p.width + j);
      A& highest = top[row * p.width + j];
      highest = x > highest ? x : highest;
    }
  });
}

template <class T>
void exp_rows(const ScatterParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const A* top = static_cast<const A*>(p.top);
  const T* src = static_cast<const T*>(p.src);
  A* work = static_cast<A*>(p.work);
  for (int64_t e = begin; e < end; ++e) {
    for (int64_t j = 0; j < p.width; ++j) {
      const int64_t i = e * p.width + j;
      work[i] = scalar(src + i) - top[p.index[e] * p.width + j];
    }
  }
  exp_in_place(work + begin * p.width, (end - begin) * p.width);
}

template <class T>
void divide_rows(const ScatterParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const A* sum = static_cast<const A*>(p.sum);
  A* work = static_cast<A*>(p.work);
  for (int64_t e = begin; e < end; ++e) {
    for (int64_t j = 0; j < p.width; ++j) {
      work[e * p.width + j] /= sum[p.index[e] * p.width + j] + A(kSoftmaxEps);
    }
  }
  if constexpr (sizeof(T) == 2) {
    convert(
        work + begin * p.width, static_cast<T*>(p.out) + begin * p.width, (end - begin) * p.width);
  }
}

template <class T>
void multiply_rows(const ScatterParams& p, int64_t begin, int64_t end) {
  const int64_t from = begin * p.width;
  const T* y = static_cast<const T*>(p.src) + from;
  const T* g = static_cast<const T*>(p.grad) + from;
  acc_t<T>* work = static_cast<acc_t<T>*>(p.work) + from;
  for_vectors<acc_t<T>>((end - begin) * p.width, [&](int64_t i, int n) {
    store_n(work + i, load_n(y + i, n) * load_n(g + i, n), n);
  });
}

template <class T>
void softmax_backward_rows(const ScatterParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const A* sum = static_cast<const A*>(p.sum);
  const T* y = static_cast<const T*>(p.src);
  A* work = static_cast<A*>(p.work);
  for (int64_t e = begin; e < end; ++e) {
    for (int64_t j = 0; j < p.width; ++j) {
      const int64_t i = e * p.width + j;
      work[i] -= scalar(y + i) * sum[p.index[e] * p.width + j];
    }
  }
  convert(
      work + begin * p.width, static_cast<T*>(p.out) + begin * p.width, (end - begin) * p.width);
}

}  // namespace

// Whether every index of [begin, end) is below size, and none is below its predecessor.
void scatter_look(
    const ScatterParams& p, int64_t begin, int64_t end, bool* in_range, bool* sorted) {
  const uint64_t size = uint64_t(p.size);
  const int64_t* before = p.index - 1;
  uint64_t outside = 0, falls = 0;
  if (begin == 0 && end > 0) {
    outside = uint64_t(p.index[0]) >= size;
    begin = 1;
  }
  for (int64_t e = begin; e < end; ++e) {
    outside |= uint64_t(uint64_t(p.index[e]) >= size);
    falls |= uint64_t(p.index[e] < before[e]);
  }
  *in_range = outside == 0;
  *sorted = falls == 0;
}

void scatter_sum_range(const ScatterParams& p, int64_t batch, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) { sum_range<decltype(t)>(p, batch, begin, end); });
}

void scatter_add_columns(const ScatterParams& p, bool include_self, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) {
    if constexpr (sizeof(t) > 2) {
      add_columns<decltype(t)>(p, include_self, begin, end);
    }
  });
}

void scatter_top_range(const ScatterParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) { top_range<decltype(t)>(p, begin, end); });
}

void scatter_exp_rows(const ScatterParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) { exp_rows<decltype(t)>(p, begin, end); });
}

// The sum of `work`, whose elements have the accumulate type already.
void scatter_add_work(const ScatterParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) {
    using A = acc_t<decltype(t)>;
    add_range(p, static_cast<const A*>(p.work), static_cast<A*>(p.sum), begin, end);
  });
}

void scatter_divide_rows(const ScatterParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) { divide_rows<decltype(t)>(p, begin, end); });
}

void scatter_multiply_rows(const ScatterParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) { multiply_rows<decltype(t)>(p, begin, end); });
}

void scatter_softmax_backward_rows(const ScatterParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) { softmax_backward_rows<decltype(t)>(p, begin, end); });
}
