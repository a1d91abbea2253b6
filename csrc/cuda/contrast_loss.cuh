// Contrast of two views: a group of lanes for each row, forward and backward.
#pragma once

#include "cuda/losses.h"
#include "cuda/rows.cuh"
#include "cuda/shares.cuh"

namespace kgrec::cuda {

template <class A>
KGREC_DEVICE A inverse_norm(A squares) {
  const A eps = A(kNormEps);
  const A norm = sqrt(squares);
  return A(1) / (norm < eps ? eps : norm);
}

// -- Forward ---------------------------------------------------------------------------------

// What is added up over the columns of a row, i, and of its negative, j.
template <class A>
struct ContrastSums {
  A first = 0, second = 0;                     // |z1_i|^2, |z2_i|^2
  A other_first = 0, other_second = 0;         // |z1_j|^2, |z2_j|^2
  A own = 0, forth = 0, back = 0;              // z1_i z2_i, z1_i z2_j, z1_j z2_i
  bool any_first = false, any_second = false;  // whether this lane saw a non-zero
};

template <class T, class S>
KGREC_DEVICE ContrastSums<acc_t<T>> contrast_sums(
    const ContrastLossParams& p, int64_t i, int64_t j, int lane) {
  using A = acc_t<T>;
  using C = LaneColumns<T, S>;
  ContrastSums<A> sums;
  int64_t slice = 0;
  do {
    const C columns(lane, slice, p.width);
#pragma unroll
    for (int v = 0; v < C::kVectors; ++v) {
      A a[C::kSize], b[C::kSize], c[C::kSize], d[C::kSize];
      columns.read(matrix_row<T>(p.z1, i), v, a);
      columns.read(matrix_row<T>(p.z2, i), v, b);
      columns.read(matrix_row<T>(p.z1, j), v, c);
      columns.read(matrix_row<T>(p.z2, j), v, d);
#pragma unroll
      for (int e = 0; e < C::kSize; ++e) {
        sums.first += a[e] * a[e];
        sums.second += b[e] * b[e];
        sums.other_first += c[e] * c[e];
        sums.other_second += d[e] * d[e];
        sums.own += a[e] * b[e];
        sums.forth += a[e] * d[e];
        sums.back += c[e] * b[e];
        sums.any_first = sums.any_first || a[e] != 0;
        sums.any_second = sums.any_second || b[e] != 0;
      }
    }
    slice = C::next_slice(slice);
  } while (slice < p.width);
  return sums;
}

template <class T, class S>
KGREC_DEVICE void contrast_row(const ContrastLossParams& p, int64_t row, GroupLanes lanes) {
  using A = acc_t<T>;
  const auto sum = [&](A x) { return group_sum(x, S::kLanes, lanes.mask); };
  const int64_t wanted = load(p.permutation + row);
  const bool inside = wanted >= 0 && wanted < p.rows;
  const ContrastSums<A> sums = contrast_sums<T, S>(p, row, inside ? wanted : row, lanes.lane);
  A inverse1 = inverse_norm(sum(sums.first)), inverse2 = inverse_norm(sum(sums.second));
  const A other1 = inverse_norm(sum(sums.other_first));
  const A other2 = inverse_norm(sum(sums.other_second));
  // A row of zeros has products of 0, whatever multiplies them.
  const A own = sum(sums.own) * inverse1 * inverse2;
  A forth = sum(sums.forth) * inverse1 * other2, back = sum(sums.back) * other1 * inverse2;
  // A square can vanish where its root does not.
  inverse1 = __ballot_sync(lanes.mask, sums.any_first) == 0 ? A(0) : inverse1;
  inverse2 = __ballot_sync(lanes.mask, sums.any_second) == 0 ? A(0) : inverse2;
  if (!inside) {
    forth = back = A(NAN);
  }
  if (lanes.lane != 0) {
    return;
  }
  // Differences are divided by tau, not cosines: an infinity is never less an infinity.
  const A tau = temperature<A>(p.tau);
  A top = own > forth ? own : forth;
  top = top > back ? top : back;
  const A e_own = exp((own - top) / tau), e_forth = exp((forth - top) / tau);
  const A e_back = exp((back - top) / tau), all = e_own + e_own + e_forth + e_back;
  store(static_cast<A*>(p.loss) + row, (top - own) / tau + log(all));
  store(
      static_cast<ContrastRow<A>*>(p.kept) + row,
      ContrastRow<A>{inverse1, inverse2, own, forth, back, e_forth / all, e_back / all, A(0)});
  if (inside) {
    store(p.inverse + wanted, static_cast<int32_t>(row));
  }
}

template <class T, class S>
__global__ void __launch_bounds__(kBlockThreads, kBlocksAtOnce)
    contrast_loss_kernel(const ContrastLossParams p) {
  for_rows<S>(p.rows, [&](int64_t row, GroupLanes lanes) { contrast_row<T, S>(p, row, lanes); });
}

template <class Run>
void launches_contrast_loss(const ContrastLossParams& p, Run&& run) {
  const bool aligned = is_aligned(p.z1, p.dtype) && is_aligned(p.z2, p.dtype);
  with_row_shape(p.dtype, p.width, aligned, [&](auto element, auto shape) {
    using S = decltype(shape);
    run(contrast_loss_kernel<decltype(element), S>, grid_for_rows<S>(p.rows), p);
  });
}

// -- Backward --------------------------------------------------------------------------------

template <class T, class S>
KGREC_DEVICE void contrast_backward_row(
    const ContrastLossBackwardParams& p, int64_t row, GroupLanes lanes) {
  using A = acc_t<T>;
  using C = LaneColumns<T, S>;
  const ContrastRow<A>* kept = static_cast<const ContrastRow<A>*>(p.kept);
  const A* grad = static_cast<const A*>(p.grad.data);
  // Of what is no permutation some places hold anything: such rows stand for themselves.
  const int64_t wanted = load(p.permutation + row), from = load(p.inverse + row);
  const int64_t j = wanted >= 0 && wanted < p.rows ? wanted : row;
  const int64_t k = from >= 0 && from < p.rows ? from : row;
  const ContrastFactors<A> f(
      load(kept + row), load(kept + j), load(kept + k), load(grad + row * p.grad.stride),
      load(grad + k * p.grad.stride), temperature<A>(p.tau), A(1) / A(kNormEps));
  T* grad1 = static_cast<T*>(p.grad_z1) + row * p.width;
  T* grad2 = static_cast<T*>(p.grad_z2) + row * p.width;
  int64_t slice = 0;
  do {
    const C columns(lanes.lane, slice, p.width);
#pragma unroll
    for (int v = 0; v < C::kVectors; ++v) {
      A a[C::kSize], b[C::kSize], there[C::kSize], here[C::kSize], out[C::kSize];
      columns.read(matrix_row<T>(p.z1, row), v, a);
      columns.read(matrix_row<T>(p.z2, row), v, b);
      columns.read(matrix_row<T>(p.z2, j), v, there);
      columns.read(matrix_row<T>(p.z2, k), v, here);
#pragma unroll
      for (int e = 0; e < C::kSize; ++e) {
        out[e] = (b[e] * f.first_own + a[e] * f.first_along) +
                 (there[e] * f.first_forth + here[e] * f.first_back);
      }
      columns.write(grad1, v, out);
      columns.read(matrix_row<T>(p.z1, k), v, there);
      columns.read(matrix_row<T>(p.z1, j), v, here);
#pragma unroll
      for (int e = 0; e < C::kSize; ++e) {
        out[e] = (a[e] * f.second_own + b[e] * f.second_along) +
                 (there[e] * f.second_forth + here[e] * f.second_back);
      }
      columns.write(grad2, v, out);
    }
    slice = C::next_slice(slice);
  } while (slice < p.width);
}

template <class T, class S>
__global__ void __launch_bounds__(kBlockThreads, kBlocksAtOnce)
    contrast_loss_backward_kernel(const ContrastLossBackwardParams p) {
  for_rows<S>(
      p.rows, [&](int64_t row, GroupLanes lanes) { contrast_backward_row<T, S>(p, row, lanes); });
}

template <class Run>
void launches_contrast_loss_backward(const ContrastLossBackwardParams& p, Run&& run) {
  const bool aligned = is_aligned(p.z1, p.dtype) && is_aligned(p.z2, p.dtype);
  with_row_shape(p.dtype, p.width, aligned, [&](auto element, auto shape) {
    using S = decltype(shape);
    run(contrast_loss_backward_kernel<decltype(element), S>, grid_for_rows<S>(p.rows), p);
  });
}

}  // namespace kgrec::cuda
