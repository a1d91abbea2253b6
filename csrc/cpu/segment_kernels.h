// Sums, spreading and softmax over sorted segments, compiled once for every instruction set.

namespace {
#include "cpu/block_kernels.h"

constexpr int64_t kTileElements = 4096;  // of softmax: whole segments that the first cache holds

// NV vectors of columns, kept in registers over all rows.
template <class T, int NV>
KGREC_INLINE void sum_columns(const T* src, int64_t rows, int64_t width, acc_t<T>* sum) {
  constexpr int W = Simd<acc_t<T>>::W;
  Vec<acc_t<T>> total[NV] = {};
  for (int64_t e = 0; e < rows; ++e) {
    for (int i = 0; i < NV; ++i) {
      total[i] += load(src + e * width + i * W);
    }
  }
  for (int i = 0; i < NV; ++i) {
    store(sum + i * W, total[i]);
  }
}

template <class T>
void sum_rows(const T* src, int64_t rows, int64_t width, acc_t<T>* sum) {
  using A = acc_t<T>;
  constexpr int W = Simd<A>::W;
  if (width == 1 && (sizeof(T) == 2 || rows >= W)) {
    Vec<A> total{};
    for_vectors<A>(rows, [&](int64_t i, int n) { total += load_n(src + i, n); });
    *sum = hsum<A>(total);
    return;
  }
  if constexpr (sizeof(T) > 2) {
    if (width < W) {
      for (int64_t j = 0; j < width; ++j) {
        sum[j] = 0;
        for (int64_t i = j; i < rows * width; i += width) {
          sum[j] += src[i];
        }
      }
      return;
    }
  }
  int64_t j = 0;
  for (; j + 4 * W <= width; j += 4 * W) {
    sum_columns<T, 4>(src + j, rows, width, sum + j);
  }
  for (; j + W <= width; j += W) {
    sum_columns<T, 1>(src + j, rows, width, sum + j);
  }
  if (j < width) {
    std::fill(sum + j, sum + width, A(0));
    for (int64_t e = 0; e < rows; ++e) {
      add_row(src + e * width + j, sum + j, width - j);
    }
  }
}

template <class T>
void finish_sum(const SegmentParams& p, int64_t segment, acc_t<T>* sum) {
  using A = acc_t<T>;
  T* out = static_cast<T*>(p.out) + segment * p.width;
  const A count = A(p.ptr[segment + 1] - p.ptr[segment]);
  if (p.mean && count > 1) {
    for (int64_t j = 0; j < p.width; ++j) {
      sum[j] /= count;
    }
  }
  convert(sum, out, p.width);
}

// Rows too narrow for vectors, of whole types: straight into the result.
template <class T>
void sum_narrow_segments(const SegmentParams& p, int64_t begin, int64_t end) {
  const int64_t width = p.width;
  const T* src = static_cast<const T*>(p.src);
  T* out = static_cast<T*>(p.out);
  for (int64_t s = begin; s < end; ++s) {
    const int64_t from = p.ptr[s] * width, to = p.ptr[s + 1] * width;
    if (to - from > kLongSegment * width) {
      continue;
    }
    const T count = p.mean ? T(std::max<int64_t>(p.ptr[s + 1] - p.ptr[s], 1)) : T(1);
    for (int64_t j = 0; j < width; ++j) {
      T sum = 0;
      for (int64_t i = from + j; i < to; i += width) {
        sum += src[i];
      }
      out[s * width + j] = p.mean ? sum / count : sum;
    }
  }
}

template <class T>
void sum_segments(const SegmentParams& p, int64_t begin, int64_t end) {
  if constexpr (sizeof(T) > 2) {
    // The rule must not depend on anything but shapes.
    if (p.width < Simd<T>::W && p.ptr[p.num_segments] < Simd<T>::W * p.num_segments) {
      return sum_narrow_segments<T>(p, begin, end);
    }
  }
  const T* src = static_cast<const T*>(p.src);
  std::vector<acc_t<T>> sum(p.width);
  for (int64_t s = begin; s < end; ++s) {
    const int64_t rows = p.ptr[s + 1] - p.ptr[s];
    if (rows <= kLongSegment) {
      sum_rows(src + p.ptr[s] * p.width, rows, p.width, sum.data());
      finish_sum<T>(p, s, sum.data());
    }
  }
}

template <class T>
void sum_chunks(const SegmentParams& p, int64_t begin, int64_t end) {
  const T* src = static_cast<const T*>(p.src);
  for (int64_t c = begin; c < end; ++c) {
    const SegmentChunk chunk = p.chunks[c];
    sum_rows(
        src + chunk.begin * p.width, chunk.end - chunk.begin, p.width,
        static_cast<acc_t<T>*>(p.partial) + c * p.width);
  }
}

// Adds up the chunks of every long segment, in their order.
template <class T>
void merge_chunks(const SegmentParams& p) {
  using A = acc_t<T>;
  std::vector<A> sum(p.width);
  for (int64_t c = 0; c < p.num_chunks;) {
    const int64_t segment = p.chunks[c].segment;
    std::fill(sum.begin(), sum.end(), A(0));
    for (; c < p.num_chunks && p.chunks[c].segment == segment; ++c) {
      add_row(static_cast<const A*>(p.partial) + c * p.width, sum.data(), p.width);
    }
    finish_sum<T>(p, segment, sum.data());
  }
}

// Rows [begin, end) of out are the rows of their segments, over its length for a mean.
template <class T>
void spread_rows(const SegmentParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const T* src = static_cast<const T*>(p.src);
  T* out = static_cast<T*>(p.out);
  std::vector<T> row(p.width);
  const int64_t* last = p.ptr + p.num_segments + 1;
  int64_t s = std::upper_bound(p.ptr, last, begin) - p.ptr - 1;
  for (int64_t e = begin; e < end; ++s) {
    const int64_t stop = std::min(end, p.ptr[s + 1]);
    if (e >= stop) {
      continue;
    }
    const A count = p.mean ? A(p.ptr[s + 1] - p.ptr[s]) : A(1);
    for_vectors<A>(p.width, [&](int64_t j, int n) {
      store_n(row.data() + j, load_n(src + s * p.width + j, n) / splat(count), n);
    });
    for (; e < stop; ++e) {
      std::copy(row.begin(), row.end(), out + e * p.width);
    }
  }
}

// f(first, last, begin, end) for tiles of whole segments and the rows they cover.
template <class F>
KGREC_INLINE void for_tiles(const SegmentParams& p, int64_t begin, int64_t end, F&& f) {
  for (int64_t first = begin; first < end;) {
    int64_t last = first + 1;
    while (last < end && (p.ptr[last + 1] - p.ptr[first]) * p.width <= kTileElements) {
      ++last;
    }
    f(first, last, p.ptr[first], p.ptr[last]);
    first = last;
  }
}

template <class A>
KGREC_INLINE A max_of(const A* x, int64_t size) {
  A top = -std::numeric_limits<A>::infinity();
  constexpr int W = Simd<A>::W;
  int64_t i = 0;
  if (size >= W) {
    Vec<A> tops = load(x);
    for (i = W; i + W <= size; i += W) {
      tops = vmax<A>(tops, load(x + i));
    }
    top = hmax<A>(tops);
  }
  for (; i < size; ++i) {
    top = x[i] > top ? x[i] : top;
  }
  return top;
}

// A NaN may be lost in the maximum, never in the sum.
template <class T>
void softmax_segments(const SegmentParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const int64_t width = p.width;
  Widened<T> widened;
  std::vector<A> buffer, column(width);
  for_tiles(p, begin, end, [&](int64_t first, int64_t last, int64_t row, int64_t stop) {
    const int64_t size = (stop - row) * width;
    const A* x = widened(static_cast<const T*>(p.src) + row * width, size);
    T* out = static_cast<T*>(p.out) + row * width;
    A* y;
    if constexpr (sizeof(T) > 2) {
      y = out;
    } else {
      if (int64_t(buffer.size()) < size) {
        buffer.resize(size);
      }
      y = buffer.data();
    }
    for (int64_t s = first; s < last; ++s) {
      const int64_t from = (p.ptr[s] - row) * width, to = (p.ptr[s + 1] - row) * width;
      if (width == 1) {
        const A top = max_of(x + from, to - from);
        for (int64_t i = from; i < to; ++i) {
          y[i] = x[i] - top;
        }
        continue;
      }
      std::fill(column.begin(), column.end(), -std::numeric_limits<A>::infinity());
      for (int64_t i = from; i < to; i += width) {
        for (int64_t j = 0; j < width; ++j) {
          column[j] = x[i + j] > column[j] ? x[i + j] : column[j];
        }
      }
      for (int64_t i = from; i < to; i += width) {
        for (int64_t j = 0; j < width; ++j) {
          y[i + j] = x[i + j] - column[j];
        }
      }
    }
    exp_in_place(y, size);
    for (int64_t s = first; s < last; ++s) {
      const int64_t from = (p.ptr[s] - row) * width, to = (p.ptr[s + 1] - row) * width;
      sum_rows(y + from, p.ptr[s + 1] - p.ptr[s], width, column.data());
      if (width == 1) {
        const A total = column[0] + A(kSoftmaxEps);
        for (int64_t i = from; i < to; ++i) {
          y[i] /= total;
        }
        continue;
      }
      for (int64_t j = 0; j < width; ++j) {
        column[j] += A(kSoftmaxEps);
      }
      for (int64_t i = from; i < to; i += width) {
        for (int64_t j = 0; j < width; ++j) {
          y[i + j] /= column[j];
        }
      }
    }
    if constexpr (sizeof(T) == 2) {
      convert(y, out, size);
    }
  });
}

// out * (grad - sum over the segment of out * grad)
template <class T>
void softmax_backward_segments(const SegmentParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const int64_t width = p.width;
  Widened<T> widened_y, widened_g;
  std::vector<A> product, column(width);
  for_tiles(p, begin, end, [&](int64_t first, int64_t last, int64_t row, int64_t stop) {
    const int64_t size = (stop - row) * width;
    const A* y = widened_y(static_cast<const T*>(p.src) + row * width, size);
    const A* g = widened_g(static_cast<const T*>(p.grad) + row * width, size);
    if (int64_t(product.size()) < size) {
      product.resize(size);
    }
    for_vectors<A>(size, [&](int64_t i, int n) {
      store_n(product.data() + i, load_n(y + i, n) * load_n(g + i, n), n);
    });
    for (int64_t s = first; s < last; ++s) {
      const int64_t from = (p.ptr[s] - row) * width, to = (p.ptr[s + 1] - row) * width;
      sum_rows(product.data() + from, p.ptr[s + 1] - p.ptr[s], width, column.data());
      for (int64_t i = from; i < to; i += width) {
        for (int64_t j = 0; j < width; ++j) {
          product[i + j] -= y[i + j] * column[j];
        }
      }
    }
    convert(product.data(), static_cast<T*>(p.out) + row * width, size);
  });
}

}  // namespace

void segment_sum_range(const SegmentParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) { sum_segments<decltype(t)>(p, begin, end); });
}

void segment_sum_chunks(const SegmentParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) { sum_chunks<decltype(t)>(p, begin, end); });
}

void segment_merge_chunks(const SegmentParams& p) {
  for_dtype(p.dtype, [&](auto t) { merge_chunks<decltype(t)>(p); });
}

void segment_spread_rows(const SegmentParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) { spread_rows<decltype(t)>(p, begin, end); });
}

void segment_softmax_range(const SegmentParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) { softmax_segments<decltype(t)>(p, begin, end); });
}

void segment_softmax_backward_range(const SegmentParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) { softmax_backward_segments<decltype(t)>(p, begin, end); });
}
