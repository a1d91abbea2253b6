// What the bindings of losses share.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "common/losses.h"
#include "cpu/binding.h"

namespace kgrec::cpu {

// `x` itself where it can be, since a call of the dispatcher takes microseconds.
inline Tensor in_one_piece(const Tensor& x) {
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

// f(begin, end, sums) over chunks of rows, on torch's threads; then the mean, in order.
template <class F>
LossSums sum_chunks(int64_t rows, int64_t width, const F& f) {
  const int64_t chunks = (rows + kLossChunk - 1) / kLossChunk;
  std::vector<LossSums> sums(static_cast<size_t>(chunks));
  parallel_rows(
      chunks, kLossChunk * width, [&](int64_t begin, int64_t end) { f(begin, end, sums.data()); });
  LossSums all;
  for (const LossSums& one : sums) {
    all.loss += one.loss;
    all.total += one.total;
  }
  return all;
}

inline Tensor scalar(const Tensor& like, double value, ScalarType dtype) {
  Tensor x = make(like, {}, dtype);
  if (dtype == ScalarType::Double) {
    *x.mutable_data_ptr<double>() = value;
  } else {
    *x.mutable_data_ptr<float>() = float(value);
  }
  return x;
}

// The incoming gradient over the sum of the weights, 0 where that is 0.
inline double grad_scale(const Tensor& grad, const Tensor& total, DType dtype) {
  const void* value = kept(grad, "grad", 1, dtype);
  const double sum = *flat<double>(total, "total", 1);
  const double g = dtype == DType::f64 ? *static_cast<const double*>(value)
                                       : double(*static_cast<const float*>(value));
  return sum == 0 ? 0.0 : g / sum;
}

inline const void* weight_of(const std::optional<Tensor>& weight, int64_t rows, DType dtype) {
  return weight ? kept(*weight, "weight", rows, dtype) : nullptr;
}

}  // namespace kgrec::cpu
