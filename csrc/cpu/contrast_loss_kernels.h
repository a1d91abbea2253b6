// Contrast of two views by rows, compiled once for every instruction set.

#include "cpu/matrix_rows.h"

namespace {

constexpr int64_t kTileRows = 64;      // whose exponentials are taken at once
constexpr int64_t kContrastAhead = 6;  // rows whose negatives are asked for that long before

template <class A>
KGREC_INLINE A inverse_norm(A squares) {
  const A eps = A(kNormEps);
  const A norm = std::sqrt(squares);
  return A(1) / (norm < eps ? eps : norm);
}

template <class T, class S>
void contrast_typed(const ContrastLossParams& p, const S& shape, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  using V = Vec<A>;
  constexpr int W = Simd<A>::W;
  const A inverse_eps = A(1) / A(kNormEps);
  const V tau = splat(temperature<A>(p.tau));
  alignas(64) A positive[kTileRows], forth[kTileRows], back[kTileRows];
  alignas(64) A weight_forth[kTileRows], weight_back[kTileRows], shift[kTileRows], sum[kTileRows];
  ContrastRow<A>* kept = static_cast<ContrastRow<A>*>(p.kept);
  for (int64_t first = begin; first < end; first += kTileRows) {
    const int count = int(std::min(kTileRows, end - first));
    for (int t = 0; t < count; ++t) {
      const int64_t row = first + t, other = p.permutation[row];
      if (row + kContrastAhead < end) {
        const int64_t ahead = p.permutation[row + kContrastAhead];
        prefetch_row(shape, row_at<T>(p.z1, ahead));
        prefetch_row(shape, row_at<T>(p.z2, ahead));
      }
      const T* z1 = row_at<T>(p.z1, row);
      const T* z2 = row_at<T>(p.z2, row);
      const T* other1 = row_at<T>(p.z1, other);
      const T* other2 = row_at<T>(p.z2, other);
      V square1{}, square2{}, other_square1{}, other_square2{}, own{}, there{}, here{};
      for (int i = 0; i < shape.vectors; ++i) {
        const V a = shape.get(z1, i), b = shape.get(z2, i);
        const V c = shape.get(other1, i), d = shape.get(other2, i);
        square1 += a * a;
        square2 += b * b;
        other_square1 += c * c;
        other_square2 += d * d;
        own += a * b;
        there += a * d;
        here += c * b;
      }
      A squares[4], products[4];
      hsum_four(square1, square2, other_square1, other_square2, squares);
      hsum_four(own, there, here, V{}, products);
      // A row of zeros has products of 0, whatever multiplies them.
      A inverse1 = inverse_norm(squares[0]), inverse2 = inverse_norm(squares[1]);
      positive[t] = products[0] * inverse1 * inverse2;
      forth[t] = products[1] * inverse1 * inverse_norm(squares[3]);
      back[t] = products[2] * inverse_norm(squares[2]) * inverse2;
      // A square can vanish where its root does not: zero means that every element is zero.
      if (inverse1 == inverse_eps && is_zero_row(shape, z1)) {
        inverse1 = 0;
      }
      if (inverse2 == inverse_eps && is_zero_row(shape, z2)) {
        inverse2 = 0;
      }
      kept[row].inverse1 = inverse1;
      kept[row].inverse2 = inverse2;
    }
    const int padded = (count + W - 1) / W * W;
    for (A* list : {positive, forth, back}) {
      std::fill(list + count, list + padded, A(0));
    }
    for (int t = 0; t < padded; t += W) {
      // Differences are divided by tau, not cosines: an infinity is never less an infinity.
      const V a = load(positive + t), b = load(forth + t), c = load(back + t);
      const V top = vmax<A>(vmax<A>(a, b), c);
      const V own = vexp((a - top) / tau), there = vexp((b - top) / tau);
      const V here = vexp((c - top) / tau), all = own + own + there + here;
      store(weight_forth + t, there / all);
      store(weight_back + t, here / all);
      store(shift + t, (top - a) / tau);
      store(sum + t, all);
    }
    for (int t = 0; t < count; ++t) {
      ContrastRow<A>& row = kept[first + t];
      row = {row.inverse1, row.inverse2,    positive[t],    forth[t],
             back[t],      weight_forth[t], weight_back[t], A(0)};
      static_cast<A*>(p.loss)[first + t] = shift[t] + std::log(sum[t]);
    }
  }
}

template <class T, class S>
void contrast_backward_typed(
    const ContrastLossBackwardParams& p, const S& shape, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  using V = Vec<A>;
  const A tau = temperature<A>(p.tau), inverse_eps = A(1) / A(kNormEps);
  const A* grad = static_cast<const A*>(p.grad.data);
  const ContrastRow<A>* kept = static_cast<const ContrastRow<A>*>(p.kept);
  for (int64_t i = begin; i < end; ++i) {
    if (i + kContrastAhead < end) {
      for (const int64_t ahead :
           {p.permutation[i + kContrastAhead], int64_t(p.inverse[i + kContrastAhead])}) {
        prefetch_row(shape, row_at<T>(p.z1, ahead));
        prefetch_row(shape, row_at<T>(p.z2, ahead));
        __builtin_prefetch(kept + ahead);
      }
    }
    const int64_t j = p.permutation[i], k = p.inverse[i];
    const ContrastFactors<A> f(
        kept[i], kept[j], kept[k], grad[i * p.grad.stride], grad[k * p.grad.stride], tau,
        inverse_eps);
    const V first_own = splat(f.first_own), first_forth = splat(f.first_forth);
    const V first_back = splat(f.first_back), first_along = splat(f.first_along);
    const V second_own = splat(f.second_own), second_forth = splat(f.second_forth);
    const V second_back = splat(f.second_back), second_along = splat(f.second_along);
    const T *i1 = row_at<T>(p.z1, i), *i2 = row_at<T>(p.z2, i);
    const T *j1 = row_at<T>(p.z1, j), *j2 = row_at<T>(p.z2, j);
    const T *k1 = row_at<T>(p.z1, k), *k2 = row_at<T>(p.z2, k);
    T* grad1 = static_cast<T*>(p.grad_z1) + i * p.width;
    T* grad2 = static_cast<T*>(p.grad_z2) + i * p.width;
    for (int v = 0; v < shape.vectors; ++v) {
      const V a = shape.get(i1, v), b = shape.get(i2, v);
      shape.put(
          grad1, v,
          (b * first_own + a * first_along) +
              (shape.get(j2, v) * first_forth + shape.get(k2, v) * first_back));
      shape.put(
          grad2, v,
          (a * second_own + b * second_along) +
              (shape.get(k1, v) * second_forth + shape.get(j1, v) * second_back));
    }
  }
}

}  // namespace

void contrast_loss_rows(const ContrastLossParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    with_row_shape<T>(p.width, [&](const auto& s) { contrast_typed<T>(p, s, begin, end); });
  });
}

void contrast_loss_backward_rows(const ContrastLossBackwardParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    with_row_shape<T>(
        p.width, [&](const auto& s) { contrast_backward_typed<T>(p, s, begin, end); });
  });
}
