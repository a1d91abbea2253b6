// The checks of topk_rows, for the bindings of both libraries.
#pragma once

#include <algorithm>
#include <limits>

#include "common/binding.h"
#include "common/topk_items.h"

namespace kgrec {

// Operands as kernels take them, kept alive.
struct TopkOperands {
  Tensor scores;
  std::optional<Tensor> ptr, items, users;
  int64_t rows = 0;
  int64_t num_items = 0;
  int64_t k = 0;
  KnownView known;
};

inline TopkOperands topk_operands(
    const Tensor& scores, const std::optional<Tensor>& known_ptr,
    const std::optional<Tensor>& known_items, const std::optional<Tensor>& users, int64_t k) {
  const ScalarType dtype = scores.scalar_type();
  STD_TORCH_CHECK(
      dtype == ScalarType::Float || dtype == ScalarType::Double,
      "scores are expected in float32 or float64");
  STD_TORCH_CHECK(scores.dim() == 2, "scores have ", scores.dim(), " dimensions, expected 2");
  STD_TORCH_CHECK(
      scores.size(1) <= std::numeric_limits<int32_t>::max(), "scores have ", scores.size(1),
      " columns, expected less than 2^31");
  STD_TORCH_CHECK(k >= 0, "k is ", k, ", expected at least 0");
  STD_TORCH_CHECK(
      known_ptr.has_value() == known_items.has_value(),
      "known_ptr and known_items are expected together, or neither");
  check_device(scores, "scores");
  TopkOperands operands{torch::stable::contiguous(scores), {}, {}, {}, 0, 0, 0, {}};
  operands.rows = scores.size(0);
  operands.num_items = scores.size(1);
  operands.k = std::min(k, operands.num_items);
  KnownView& known = operands.known;
  if (known_ptr) {
    operands.ptr = torch::stable::contiguous(*known_ptr);
    operands.items = torch::stable::contiguous(*known_items);
    known.num_users = operands.ptr->numel() - 1;
    known.num_known = operands.items->numel();
    known.ptr = flat<int64_t>(*operands.ptr, "known_ptr", known.num_users + 1);
    known.wide = operands.items->scalar_type() == ScalarType::Long;
    known.items = known.wide ? static_cast<const void*>(
                                   flat<int64_t>(*operands.items, "known_items", known.num_known))
                             : flat<int32_t>(*operands.items, "known_items", known.num_known);
  }
  if (users) {
    operands.users = torch::stable::contiguous(*users);
    known.users = flat<int64_t>(*operands.users, "users", operands.rows);
  }
  return operands;
}

}  // namespace kgrec
