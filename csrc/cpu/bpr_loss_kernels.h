// Ranking of pairs by chunks of rows, compiled once for every instruction set.

#include "cpu/matrix_rows.h"

namespace {

// e^-|x| of `count` numbers, in whole vectors of memory that is large enough.
template <class A>
KGREC_INLINE void exp_minus_abs(A* x, A* out, int count) {
  constexpr int W = Simd<A>::W;
  std::fill(x + count, x + (count + W - 1) / W * W, A(0));
  for (int t = 0; t < count; t += W) {
    const Vec<A> v = load(x + t);
    store(out + t, vexp(v > 0 ? -v : v));
  }
}

template <class T, class S>
void bpr_typed(const BprLossParams& p, const S& shape, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  using V = Vec<A>;
  const A* weight = static_cast<const A*>(p.weight);
  const A eps = A(p.eps);
  alignas(64) A gap[kLossChunk], exponential[kLossChunk], penalty[kLossChunk];
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * kLossChunk;
    const int count = int(std::min(kLossChunk, p.rows - first));
    for (int t = 0; t < count; ++t) {
      const T* user = row_at<T>(p.user, first + t);
      const T* positive = row_at<T>(p.positive, first + t);
      const T* negative = row_at<T>(p.negative, first + t);
      V products{}, squares{}, item_squares{};
      for (int i = 0; i < shape.vectors; ++i) {
        const V u = shape.get(user, i), a = shape.get(positive, i), b = shape.get(negative, i);
        products += u * (a - b);
        squares += u * u;
        item_squares += a * a + b * b;
      }
      gap[t] = hsum<A>(products);
      penalty[t] = hsum<A>(squares + item_squares);
    }
    std::copy(gap, gap + count, static_cast<A*>(p.gap) + first);
    exp_minus_abs(gap, exponential, count);
    LossSums sums;
    for (int t = 0; t < count; ++t) {
      const double w = weight == nullptr ? 1.0 : double(weight[first + t]);
      if (w != 0) {
        const double loss = double(ranking_loss(gap[t], exponential[t], eps));
        sums.loss += w * (loss + 0.5 * p.reg_weight * double(penalty[t]));
        sums.total += w;
      }
    }
    p.sums[chunk] = sums;
  }
}

template <class T, class S>
void bpr_backward_typed(
    const BprLossBackwardParams& p, const S& shape, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  using V = Vec<A>;
  const A* weight = static_cast<const A*>(p.weight);
  const A eps = A(p.eps);
  alignas(64) A gap[kLossChunk], exponential[kLossChunk];
  for (int64_t first = begin; first < end; first += kLossChunk) {
    const int count = int(std::min(kLossChunk, end - first));
    const A* gaps = static_cast<const A*>(p.gap) + first;
    std::copy(gaps, gaps + count, gap);
    exp_minus_abs(gap, exponential, count);
    for (int t = 0; t < count; ++t) {
      const int64_t row = first + t, offset = row * p.width;
      const A share = A(p.scale) * (weight == nullptr ? A(1) : weight[row]);
      const V slope = splat(share == 0 ? A(0) : share * ranking_slope(gap[t], exponential[t], eps));
      const V decay = splat(share * A(p.reg_weight));
      const T* user = row_at<T>(p.user, row);
      const T* positive = row_at<T>(p.positive, row);
      const T* negative = row_at<T>(p.negative, row);
      T* grad_user = static_cast<T*>(p.grad_user) + offset;
      T* grad_positive = static_cast<T*>(p.grad_positive) + offset;
      T* grad_negative = static_cast<T*>(p.grad_negative) + offset;
      for (int i = 0; i < shape.vectors; ++i) {
        const V u = shape.get(user, i), a = shape.get(positive, i), b = shape.get(negative, i);
        shape.put(grad_user, i, (a - b) * slope + u * decay);
        shape.put(grad_positive, i, u * slope + a * decay);
        shape.put(grad_negative, i, b * decay - u * slope);
      }
    }
  }
}

}  // namespace

void bpr_loss_chunks(const BprLossParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    with_row_shape<T>(p.width, [&](const auto& s) { bpr_typed<T>(p, s, begin, end); });
  });
}

void bpr_loss_backward_rows(const BprLossBackwardParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    with_row_shape<T>(p.width, [&](const auto& s) { bpr_backward_typed<T>(p, s, begin, end); });
  });
}
