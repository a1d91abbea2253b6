// A group of lanes takes a row: it holds it in registers where there is a RowShape for the width,
// else a warp goes over it twice. Elements are numbered over the whole matrix, and a random word
// belongs to the number, so that who draws it does not show.
#pragma once

#include <type_traits>

#include "cuda/device.cuh"
#include "cuda/dropout_normalize_add.h"
#include "cuda/philox.cuh"
#include "cuda/rows.cuh"

namespace kgrec::cuda {

template <class T>
KGREC_DEVICE const T* row_of(const Matrix& x, int64_t row) {
  return static_cast<const T*>(x.data) + row * x.stride;
}

// What dropout leaves of elements: scaled, or 0, so that a dropped infinity or NaN is gone.
template <class A>
struct Keep {
  bool active;
  PhiloxDraw draw;
  uint32_t threshold;
  const int64_t* row_ids;

  KGREC_DEVICE explicit Keep(const Dropout& dropout)
      : active(dropout.rng != nullptr),
        draw{},
        threshold(dropout.threshold),
        row_ids(dropout.row_ids) {
    if (active) {
      draw = load_draw(dropout.rng, dropout.stream);
    }
  }
  // The number of a row in the draws.
  KGREC_DEVICE int64_t number(int64_t row) const {
    return row_ids != nullptr ? load(row_ids + row) : row;
  }
  // Element number `at`, already scaled.
  KGREC_DEVICE A one(A x, int64_t at) const {
    return !active || keeps(philox_word(draw, at), threshold) ? x : A(0);
  }
  template <class T>
  KGREC_DEVICE void vector(Wide<T>& x, int64_t at) const {
    if (active) {
      uint32_t words[Wide<T>::kSize];
      philox_words(draw, at, words);
#pragma unroll
      for (int i = 0; i < Wide<T>::kSize; ++i) {
        x[i] = keeps(words[i], threshold) ? x[i] : A(0);
      }
    }
  }
};

// The norm as it divides, and as it is kept for backward: zero where every element is.
template <class A>
struct Norm {
  A divisor, kept;
};

// A square can vanish where its root does not, hence `any`: whether this lane saw a non-zero.
template <class A>
KGREC_DEVICE Norm<A> norm_of(A squares, bool any, int group_lanes, unsigned mask) {
  const A eps = A(kNormEps);
  A norm = sqrt(group_sum(squares, group_lanes, mask));
  norm = norm < eps ? eps : norm;
  const bool zero = __ballot_sync(mask, any) == 0;
  return {norm, zero ? A(0) : norm};
}

// -- Forward ---------------------------------------------------------------------------------

template <class T, int kWidth>
KGREC_DEVICE void forward_row(
    const DropoutNormalizeAddParams& p, const Keep<acc_t<T>>& keep, int64_t row, GroupLanes lanes,
    RowShape<T, kWidth>) {
  using A = acc_t<T>;
  using S = RowShape<T, kWidth>;
  const T* x = row_of<T>(p.x, row);
  const int64_t number = keep.number(row);
  const A scale = A(p.dropout.scale);
  Wide<T> message[S::kVectors];
  A squares = 0;
  bool any = false;
#pragma unroll
  for (int v = 0; v < S::kVectors; ++v) {
    const int col = (v * S::kLanes + lanes.lane) * S::kSize;
    message[v] = load_wide(x + col);
#pragma unroll
    for (int i = 0; i < S::kSize; ++i) {
      message[v][i] *= scale;
    }
    keep.vector(message[v], number * kWidth + col);
#pragma unroll
    for (int i = 0; i < S::kSize; ++i) {
      squares += message[v][i] * message[v][i];
      any = any || message[v][i] != 0;
    }
  }
  const Norm<A> norm = norm_of(squares, any, S::kLanes, lanes.mask);
  const A inverse = A(1) / norm.divisor;
#pragma unroll
  for (int v = 0; v < S::kVectors; ++v) {
    const int col = (v * S::kLanes + lanes.lane) * S::kSize;
#pragma unroll
    for (int i = 0; i < S::kSize; ++i) {
      message[v][i] *= inverse;
    }
    const Vec<T> y = narrow<T>(message[v]);
    store_vec(static_cast<T*>(p.y) + row * kWidth + col, y);
    if (p.residual.data != nullptr) {
      Wide<T> sum = load_wide(row_of<T>(p.residual, row) + col);
      const Wide<T> rounded = widen(y);
#pragma unroll
      for (int i = 0; i < S::kSize; ++i) {
        sum[i] += rounded[i];
      }
      store_wide(static_cast<T*>(p.out) + row * kWidth + col, sum);
    }
  }
  if (lanes.lane == 0) {
    store(static_cast<A*>(p.norm) + row, norm.kept);
  }
}

template <class T>
KGREC_DEVICE void forward_row(
    const DropoutNormalizeAddParams& p, const Keep<acc_t<T>>& keep, int64_t row, GroupLanes lanes,
    AnyShape) {
  using A = acc_t<T>;
  const T* x = row_of<T>(p.x, row);
  const A scale = A(p.dropout.scale);
  const int64_t first = row * p.width, drawn = keep.number(row) * p.width;
  A squares = 0;
  bool any = false;
  for (int64_t col = lanes.lane; col < p.width; col += kWarp) {
    const A message = keep.one(widen(load(x + col)) * scale, drawn + col);
    squares += message * message;
    any = any || message != 0;
  }
  const Norm<A> norm = norm_of(squares, any, kWarp, lanes.mask);
  const A inverse = A(1) / norm.divisor;
#pragma unroll 1  // the words of several elements at once do not fit the registers
  for (int64_t col = lanes.lane; col < p.width; col += kWarp) {
    const A message = keep.one(widen(load(x + col)) * scale, drawn + col);
    const T y = narrow<T>(message * inverse);
    store(static_cast<T*>(p.y) + first + col, y);
    if (p.residual.data != nullptr) {
      const A sum = widen(load(row_of<T>(p.residual, row) + col)) + widen(y);
      store(static_cast<T*>(p.out) + first + col, narrow<T>(sum));
    }
  }
  if (lanes.lane == 0) {
    store(static_cast<A*>(p.norm) + row, norm.kept);
  }
}

template <class T, class S>
__global__ void __launch_bounds__(kBlockThreads)
    dropout_normalize_add_kernel(const DropoutNormalizeAddParams p) {
  const Keep<acc_t<T>> keep(p.dropout);
  for_rows<S>(
      p.rows, [&](int64_t row, GroupLanes lanes) { forward_row<T>(p, keep, row, lanes, S{}); });
}

template <class Run>
void launches_dropout_normalize_add(const DropoutNormalizeAddParams& p, Run&& run) {
  const bool aligned = is_aligned(p.x, p.dtype) && is_aligned(p.residual, p.dtype);
  with_row_shape(p.dtype, p.width, aligned, [&](auto element, auto shape) {
    using S = decltype(shape);
    run(dropout_normalize_add_kernel<decltype(element), S>, grid_for_rows<S>(p.rows), p);
  });
}

// -- Backward: with g the sum of both gradients, scale / norm * (g - y (g . y)) where kept
// ---------

// What multiplies y and what multiplies all. Below eps the norm was replaced by a constant.
template <class A>
struct Factors {
  A along, scale;
  KGREC_DEVICE Factors(A products, A norm, double kept, int group_lanes, unsigned mask)
      : along(group_sum(products, group_lanes, mask)), scale(A(kept) / norm) {
    along = norm == A(kNormEps) ? A(0) : along;
  }
};

template <class T, int kWidth>
KGREC_DEVICE void backward_row(
    const DropoutNormalizeAddBackwardParams& p, const Keep<acc_t<T>>& keep, int64_t row,
    GroupLanes lanes, RowShape<T, kWidth>) {
  using A = acc_t<T>;
  using S = RowShape<T, kWidth>;
  const A norm = load(static_cast<const A*>(p.norm) + row);
  T* grad_x = static_cast<T*>(p.grad_x) + row * kWidth;
  const int64_t number = keep.number(row);
  Wide<T> grad[S::kVectors], y[S::kVectors];
  A products = 0;
#pragma unroll
  for (int v = 0; v < S::kVectors; ++v) {
    const int col = (v * S::kLanes + lanes.lane) * S::kSize;
    grad[v] = Wide<T>{};
    if (p.grad_y.data != nullptr) {
      grad[v] = load_wide(row_of<T>(p.grad_y, row) + col);
    }
    if (p.grad_out.data != nullptr) {
      const Wide<T> other = load_wide(row_of<T>(p.grad_out, row) + col);
#pragma unroll
      for (int i = 0; i < S::kSize; ++i) {
        grad[v][i] += other[i];
      }
    }
    y[v] = load_wide(row_of<T>(p.y, row) + col);
#pragma unroll
    for (int i = 0; i < S::kSize; ++i) {
      products += grad[v][i] * y[v][i];
    }
  }
  const Factors<A> factors(products, norm, p.dropout.scale, S::kLanes, lanes.mask);
#pragma unroll
  for (int v = 0; v < S::kVectors; ++v) {
    const int col = (v * S::kLanes + lanes.lane) * S::kSize;
#pragma unroll
    for (int i = 0; i < S::kSize; ++i) {
      const A g = (grad[v][i] - y[v][i] * factors.along) * factors.scale;
      grad[v][i] = norm == 0 ? A(0) : g;
    }
    keep.vector(grad[v], number * kWidth + col);
    store_wide(grad_x + col, grad[v]);
  }
}

template <class T>
KGREC_DEVICE void backward_row(
    const DropoutNormalizeAddBackwardParams& p, const Keep<acc_t<T>>& keep, int64_t row,
    GroupLanes lanes, AnyShape) {
  using A = acc_t<T>;
  const T* y = row_of<T>(p.y, row);
  const A norm = load(static_cast<const A*>(p.norm) + row);
  const int64_t first = row * p.width, drawn = keep.number(row) * p.width;
  const auto grad_at = [&](int64_t col) {
    A grad = 0;
    if (p.grad_y.data != nullptr) {
      grad += widen(load(row_of<T>(p.grad_y, row) + col));
    }
    if (p.grad_out.data != nullptr) {
      grad += widen(load(row_of<T>(p.grad_out, row) + col));
    }
    return grad;
  };
  A products = 0;
  for (int64_t col = lanes.lane; col < p.width; col += kWarp) {
    products += grad_at(col) * widen(load(y + col));
  }
  const Factors<A> factors(products, norm, p.dropout.scale, kWarp, lanes.mask);
  for (int64_t col = lanes.lane; col < p.width; col += kWarp) {
    const A g = (grad_at(col) - widen(load(y + col)) * factors.along) * factors.scale;
    store(
        static_cast<T*>(p.grad_x) + first + col,
        narrow<T>(norm == 0 ? A(0) : keep.one(g, drawn + col)));
  }
}

template <class T, class S>
__global__ void __launch_bounds__(kBlockThreads)
    dropout_normalize_add_backward_kernel(const DropoutNormalizeAddBackwardParams p) {
  const Keep<acc_t<T>> keep(p.dropout);
  for_rows<S>(
      p.rows, [&](int64_t row, GroupLanes lanes) { backward_row<T>(p, keep, row, lanes, S{}); });
}

template <class Run>
void launches_dropout_normalize_add_backward(
    const DropoutNormalizeAddBackwardParams& p, Run&& run) {
  const bool aligned =
      is_aligned(p.grad_y, p.dtype) && is_aligned(p.grad_out, p.dtype) && is_aligned(p.y, p.dtype);
  with_row_shape(p.dtype, p.width, aligned, [&](auto element, auto shape) {
    using S = decltype(shape);
    run(dropout_normalize_add_backward_kernel<decltype(element), S>, grid_for_rows<S>(p.rows), p);
  });
}

}  // namespace kgrec::cuda
