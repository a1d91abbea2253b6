// Ranking of pairs: a group of lanes for each pair, forward and backward.
#pragma once

#include "cuda/loss_sums.cuh"
#include "cuda/shares.cuh"

namespace kgrec::cuda {

// -- Forward ---------------------------------------------------------------------------------

template <class T, class S>
KGREC_DEVICE void add_pair(const BprLossParams& p, int64_t row, GroupLanes lanes, LossSums& sums) {
  using A = acc_t<T>;
  using C = LaneColumns<T, S>;
  A gap = 0, squares = 0;
  int64_t slice = 0;
  do {
    const C columns(lanes.lane, slice, p.width);
#pragma unroll
    for (int v = 0; v < C::kVectors; ++v) {
      A u[C::kSize], a[C::kSize], b[C::kSize];
      columns.read(matrix_row<T>(p.user, row), v, u);
      columns.read(matrix_row<T>(p.positive, row), v, a);
      columns.read(matrix_row<T>(p.negative, row), v, b);
#pragma unroll
      for (int e = 0; e < C::kSize; ++e) {
        gap += u[e] * (a[e] - b[e]);
        squares += u[e] * u[e] + (a[e] * a[e] + b[e] * b[e]);
      }
    }
    slice = C::next_slice(slice);
  } while (slice < p.width);
  gap = group_sum(gap, S::kLanes, lanes.mask);
  squares = group_sum(squares, S::kLanes, lanes.mask);
  if (lanes.lane == 0) {
    store(static_cast<A*>(p.gap) + row, gap);
    const double weight = double(weight_at<A>(p.weight, row));
    if (weight != 0) {
      const double loss = double(ranking_loss(gap, exp(-fabs(gap)), A(p.eps)));
      sums.loss += weight * (loss + 0.5 * p.reg_weight * double(squares));
      sums.total += weight;
    }
  }
}

template <class T, class S>
__global__ void __launch_bounds__(kBlockThreads, kBlocksAtOnce)
    bpr_loss_kernel(const BprLossParams p) {
  sum_chunks<S>(p.rows, p.mean.sums, [&](int64_t row, GroupLanes lanes, LossSums& sums) {
    add_pair<T, S>(p, row, lanes, sums);
  });
}

template <class Run>
void launches_bpr_loss(const BprLossParams& p, Run&& run) {
  const bool aligned = is_aligned(p.user, p.dtype) && is_aligned(p.positive, p.dtype) &&
                       is_aligned(p.negative, p.dtype);
  with_row_shape(p.dtype, p.width, aligned, [&](auto element, auto shape) {
    using S = decltype(shape);
    run(bpr_loss_kernel<decltype(element), S>, grid_for(loss_chunks(p.rows), 1), p);
  });
  launches_loss_mean(p.rows, p.dtype, p.mean, run);
}

// -- Backward --------------------------------------------------------------------------------

template <class T, class S>
KGREC_DEVICE void bpr_backward_row(const BprLossBackwardParams& p, int64_t row, GroupLanes lanes) {
  using A = acc_t<T>;
  using C = LaneColumns<T, S>;
  const A share = grad_share<A>(p, row);
  const A gap = load(static_cast<const A*>(p.gap) + row);
  const A slope = share == 0 ? A(0) : share * ranking_slope(gap, exp(-fabs(gap)), A(p.eps));
  const A decay = share * A(p.reg_weight);
  T* grad_user = static_cast<T*>(p.grad_user) + row * p.width;
  T* grad_positive = static_cast<T*>(p.grad_positive) + row * p.width;
  T* grad_negative = static_cast<T*>(p.grad_negative) + row * p.width;
  int64_t slice = 0;
  do {
    const C columns(lanes.lane, slice, p.width);
#pragma unroll
    for (int v = 0; v < C::kVectors; ++v) {
      A u[C::kSize], a[C::kSize], b[C::kSize];
      columns.read(matrix_row<T>(p.user, row), v, u);
      columns.read(matrix_row<T>(p.positive, row), v, a);
      columns.read(matrix_row<T>(p.negative, row), v, b);
#pragma unroll
      for (int e = 0; e < C::kSize; ++e) {
        const A along = u[e] * slope;
        u[e] = (a[e] - b[e]) * slope + u[e] * decay;
        a[e] = along + a[e] * decay;
        b[e] = b[e] * decay - along;
      }
      columns.write(grad_user, v, u);
      columns.write(grad_positive, v, a);
      columns.write(grad_negative, v, b);
    }
    slice = C::next_slice(slice);
  } while (slice < p.width);
}

template <class T, class S>
__global__ void __launch_bounds__(kBlockThreads, kBlocksAtOnce)
    bpr_loss_backward_kernel(const BprLossBackwardParams p) {
  for_rows<S>(
      p.rows, [&](int64_t row, GroupLanes lanes) { bpr_backward_row<T, S>(p, row, lanes); });
}

template <class Run>
void launches_bpr_loss_backward(const BprLossBackwardParams& p, Run&& run) {
  const bool aligned = is_aligned(p.user, p.dtype) && is_aligned(p.positive, p.dtype) &&
                       is_aligned(p.negative, p.dtype);
  with_row_shape(p.dtype, p.width, aligned, [&](auto element, auto shape) {
    using S = decltype(shape);
    run(bpr_loss_backward_kernel<decltype(element), S>, grid_for_rows<S>(p.rows), p);
  });
}

}  // namespace kgrec::cuda
