#include "cpu/dropout_normalize_add.h"

#include <tuple>

#include "cpu/binding.h"
#include "cpu/dispatch.h"

#define KGREC_KERNELS "cpu/dropout_normalize_add_kernels.h"
#include "cpu/foreach_isa.h"

namespace kgrec::cpu {
namespace {

Dropout dropout_of(
    const std::optional<Tensor>& rng, double p, int64_t stream,
    const std::optional<Tensor>& row_ids, int64_t rows) {
  STD_TORCH_CHECK(p >= 0 && p < 1, "p is ", p, ", expected 0 <= p < 1");
  Dropout dropout;
  if (rng) {
    dropout.active = true;
    dropout.draw = draw_of(*rng, stream);
    dropout.threshold = drop_threshold(p);
    dropout.scale = 1.0 / (1.0 - p);
    dropout.row_ids = row_ids ? flat<int64_t>(*row_ids, "row_ids", rows) : nullptr;
  }
  return dropout;
}

std::tuple<Tensor, Tensor, Tensor> dropout_normalize_add(
    const Tensor& x, const std::optional<Tensor>& residual, const std::optional<Tensor>& rng,
    double p, int64_t stream, const std::optional<Tensor>& row_ids) {
  DropoutNormalizeAddParams params;
  params.dtype = dtype_of(x, "x");
  const Tensor left = operand(x, "x", 0, x);
  params.dropout = dropout_of(rng, p, stream, row_ids, left.size(0));
  const int64_t rows = left.size(0), width = left.size(1);
  std::optional<Tensor> right;
  if (residual) {
    right = operand(*residual, "residual", rows, left);
    params.residual = matrix(*right);
  }
  params.width = width;
  params.x = matrix(left);
  Tensor y = make(x, {rows, width}, x.scalar_type());
  Tensor out = make(x, {residual ? rows : 0, width}, x.scalar_type());
  Tensor norm = make(x, {rows}, accumulate_type(params.dtype));
  params.y = y.mutable_data_ptr();
  params.out = out.mutable_data_ptr();
  params.norm = norm.mutable_data_ptr();
  parallel_rows(rows, width, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(dropout_normalize_add_rows, params, begin, end);
  });
  return {y, out, norm};
}

Tensor dropout_normalize_add_backward(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_out, const Tensor& y,
    const Tensor& norm, const std::optional<Tensor>& rng, double p, int64_t stream,
    const std::optional<Tensor>& row_ids) {
  DropoutNormalizeAddBackwardParams params;
  params.dtype = dtype_of(y, "y");
  params.dropout = dropout_of(rng, p, stream, row_ids, y.size(0));
  const Tensor rows_y = operand(y, "y", 0, y);
  const int64_t rows = y.size(0), width = y.size(1);
  params.width = width;
  params.y = matrix(rows_y);
  std::optional<Tensor> first, second;
  if (grad_y) {
    first = operand(*grad_y, "grad_y", rows, y);
    params.grad_y = matrix(*first);
  }
  if (grad_out) {
    second = operand(*grad_out, "grad_out", rows, y);
    params.grad_out = matrix(*second);
  }
  params.norm = kept(norm, "norm", rows, params.dtype);
  Tensor grad_x = make(y, {rows, width}, y.scalar_type());
  params.grad_x = grad_x.mutable_data_ptr();
  parallel_rows(rows, width, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(dropout_normalize_add_backward_rows, params, begin, end);
  });
  return grad_x;
}

}  // namespace
}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CPU, m) {
  m.impl("dropout_normalize_add", TORCH_BOX(&kgrec::cpu::dropout_normalize_add));
  m.impl("dropout_normalize_add_backward", TORCH_BOX(&kgrec::cpu::dropout_normalize_add_backward));
}
