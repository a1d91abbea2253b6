// What the bindings of mean losses share.
#pragma once

#include "cuda/binding.h"
#include "cuda/losses.h"

namespace kgrec::cuda {

// The memory of a mean over rows.
struct MeanTensors {
  Tensor loss, total, sums;

  MeanTensors(const Tensor& like, int64_t rows, DType dtype)
      : loss(make(like, {}, accumulate_type(dtype))),
        total(make(like, {}, ScalarType::Double)),
        sums(make(like, {loss_chunks(rows), 2}, ScalarType::Double)) {}

  LossMean view() {
    return {
        reinterpret_cast<LossSums*>(sums.mutable_data_ptr<double>()), loss.mutable_data_ptr(),
        total.mutable_data_ptr<double>()};
  }
};

inline const void* weight_of(const std::optional<Tensor>& weight, int64_t rows, DType dtype) {
  return weight ? kept(*weight, "weight", rows, dtype) : nullptr;
}

}  // namespace kgrec::cuda
