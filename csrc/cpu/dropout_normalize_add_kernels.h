// Dropout, normalisation and residual of rows, compiled once for every instruction set.

namespace {
#include "cpu/philox_kernels.h"

constexpr int64_t kTileElements = kPhiloxSlack;  // whose random words are drawn at once

typedef uint32_t HalfU32 __attribute__((vector_size(KGREC_VECTOR_BYTES / 2)));

// v where the element's word says so, -0 elsewhere: a dropped infinity or NaN is gone.
template <class A>
KGREC_INLINE Vec<A> keep(Vec<A> v, const uint32_t* words, uint32_t threshold) {
  if constexpr (sizeof(A) == 4) {
    U32 word;
    std::memcpy(&word, words, sizeof(word));
    return (word >> (32 - kUniformBits)) >= threshold ? v : -Vec<A>{};
  } else {
    HalfU32 word;
    std::memcpy(&word, words, sizeof(word));
    const I64 wide = __builtin_convertvector(word >> (32 - kUniformBits), I64);
    return wide >= int64_t(threshold) ? v : -Vec<A>{};
  }
}

// Forward writes -0 where an element was dropped, and 0 for every other zero: backward sees the
// mask in y, and need not draw it again.
template <class A>
KGREC_INLINE Ints<A> is_dropped(Vec<A> v) {
  using Element = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
  return bit_cast<Ints<A>>(v) == std::numeric_limits<Element>::min();
}

// Adding 0 would do, but where it is fused into a product one that vanishes keeps its sign.
template <class A>
KGREC_INLINE Vec<A> without_sign_of_zero(Vec<A> v) {
  return v == Vec<A>{} ? Vec<A>{} : v;
}

// v as it reads back once stored.
template <class T>
KGREC_INLINE Vec<acc_t<T>> rounded(Vec<acc_t<T>> v) {
  if constexpr (sizeof(T) == 2) {
    return widen(T{}, narrow(T{}, v));
  } else {
    return v;
  }
}

// f(row, words) for every row that is not empty, empty(row) for the others, which are many where a
// hop was restricted to few rows; words are those of the row's elements, null without dropout.
template <class IsEmpty, class Empty, class F>
KGREC_INLINE void for_rows(
    const Dropout& dropout, int64_t width, int64_t begin, int64_t end, IsEmpty&& is_empty,
    Empty&& empty, F&& f) {
  const int64_t* ids = dropout.row_ids;
  const int64_t tile =
      ids != nullptr ? 1 : std::max<int64_t>(1, kTileElements / std::max<int64_t>(width, 1));
  PhiloxWords words(dropout.active ? tile * width : 0);
  for (int64_t first = begin; first < end; first += tile) {
    const int64_t last = std::min(first + tile, end);
    const uint32_t* word = nullptr;
    for (int64_t row = first; row < last; ++row) {
      if (is_empty(row)) {
        empty(row);
        continue;
      }
      if (dropout.active && word == nullptr) {
        const int64_t number = ids != nullptr ? ids[first] : first;
        word = words.fill(dropout.draw, number * width, (number + last - first) * width);
      }
      f(row, word == nullptr ? nullptr : word + (row - first) * width);
    }
  }
}

template <class T, class S>
void forward_rows(const DropoutNormalizeAddParams& p, const S& shape, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  using V = Vec<A>;
  constexpr int W = Simd<A>::W;
  const V scale = splat(A(p.dropout.scale));
  Scratch<S> scratch(shape, 1);
  const auto x_row = [&](int64_t row) {
    return static_cast<const T*>(p.x.data) + row * p.x.stride;
  };
  const auto is_empty = [&](int64_t row) { return is_zero_row(shape, x_row(row)); };
  const auto empty = [&](int64_t row) {
    static_cast<A*>(p.norm)[row] = A(0);
    std::fill_n(static_cast<T*>(p.y) + row * p.width, p.width, T{});
    if (p.residual.data != nullptr) {
      const T* residual = static_cast<const T*>(p.residual.data) + row * p.residual.stride;
      std::copy_n(residual, p.width, static_cast<T*>(p.out) + row * p.width);
    }
  };
  for_rows(
      p.dropout, p.width, begin, end, is_empty, empty, [&](int64_t row, const uint32_t* words) {
        const T* x = x_row(row);
        V* memory = scratch.memory;
        typename S::Row message(shape, memory);
        V squares{};
        for (int i = 0; i < shape.vectors; ++i) {
          V m = shape.get(x, i);
          if (words != nullptr) {
            const V scaled = without_sign_of_zero<A>(m * scale);
            m = keep<A>(scaled, words + i * W, p.dropout.threshold);
          }
          message.v[i] = m;
          squares += m * m;
        }
        const A eps = A(kNormEps);
        A norm = std::sqrt(hsum<A>(squares));
        norm = norm < eps ? eps : norm;
        const V inverse = splat(A(1) / norm);
        if (norm == eps) {
          // A square can vanish where its root does not: zero means that every element is zero.
          bool zero = true;
          for (int i = 0; i < shape.vectors; ++i) {
            A lane[W];
            std::memcpy(lane, &message.v[i], sizeof(lane));
            zero = zero && std::all_of(lane, lane + W, [](A a) { return a == 0; });
          }
          norm = zero ? A(0) : norm;
        }
        static_cast<A*>(p.norm)[row] = norm;
        T* y = static_cast<T*>(p.y) + row * p.width;
        for (int i = 0; i < shape.vectors; ++i) {
          const V value = without_sign_of_zero<A>(rounded<T>(message.v[i] * inverse));
          message.v[i] = is_dropped<A>(message.v[i]) ? message.v[i] : value;
          shape.put(y, i, message.v[i]);
        }
        if (p.residual.data != nullptr) {
          const T* residual = static_cast<const T*>(p.residual.data) + row * p.residual.stride;
          T* out = static_cast<T*>(p.out) + row * p.width;
          for (int i = 0; i < shape.vectors; ++i) {
            shape.put(out, i, shape.get(residual, i) + message.v[i]);
          }
        }
      });
}

// With g the sum of both gradients: scale / norm * (g - y (g . y)) where the element was kept.
template <class T, class S>
void backward_rows(
    const DropoutNormalizeAddBackwardParams& p, const S& shape, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  using V = Vec<A>;
  Scratch<S> scratch(shape, 1);
  for (int64_t row = begin; row < end; ++row) {
    const A norm = static_cast<const A*>(p.norm)[row];
    T* grad_x = static_cast<T*>(p.grad_x) + row * p.width;
    if (norm == 0) {
      std::fill_n(grad_x, p.width, T{});
      continue;
    }
    const T* grad_y = static_cast<const T*>(p.grad_y.data);
    const T* grad_out = static_cast<const T*>(p.grad_out.data);
    grad_y = grad_y == nullptr ? nullptr : grad_y + row * p.grad_y.stride;
    grad_out = grad_out == nullptr ? nullptr : grad_out + row * p.grad_out.stride;
    const T* y = static_cast<const T*>(p.y.data) + row * p.y.stride;
    V* memory = scratch.memory;
    typename S::Row grad(shape, memory);
    V products{};
    for (int i = 0; i < shape.vectors; ++i) {
      V g{};
      if (grad_y != nullptr) {
        g += shape.get(grad_y, i);
      }
      if (grad_out != nullptr) {
        g += shape.get(grad_out, i);
      }
      grad.v[i] = g;
      products += g * shape.get(y, i);
    }
    // Below eps the norm was replaced by a constant.
    const V along = splat(norm == A(kNormEps) ? A(0) : hsum<A>(products));
    const V scale = splat(A(p.dropout.scale) / norm);
    for (int i = 0; i < shape.vectors; ++i) {
      const V value = shape.get(y, i);
      const V g = (grad.v[i] - value * along) * scale;
      shape.put(grad_x, i, p.dropout.active && is_dropped<A>(value) ? V{} : g);
    }
  }
}

}  // namespace

void dropout_normalize_add_rows(const DropoutNormalizeAddParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    with_row_shape<T>(p.width, [&](const auto& shape) { forward_rows<T>(p, shape, begin, end); });
  });
}

void dropout_normalize_add_backward_rows(
    const DropoutNormalizeAddBackwardParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    with_row_shape<T>(p.width, [&](const auto& shape) { backward_rows<T>(p, shape, begin, end); });
  });
}
