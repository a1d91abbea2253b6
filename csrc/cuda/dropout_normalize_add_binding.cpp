#include <tuple>

#include "common/philox.h"
#include "cuda/binding.h"
#include "cuda/dropout_normalize_add.h"

namespace kgrec::cuda {
namespace {

Dropout dropout_of(
    const std::optional<Tensor>& rng, double p, int64_t stream,
    const std::optional<Tensor>& row_ids, int64_t rows) {
  STD_TORCH_CHECK(p >= 0 && p < 1, "p is ", p, ", expected 0 <= p < 1");
  Dropout dropout;
  if (rng) {
    dropout.rng = flat<int64_t>(*rng, "rng", 2);
    dropout.stream = stream;
    dropout.threshold = drop_threshold(p);
    dropout.scale = 1.0 / (1.0 - p);
    dropout.row_ids = row_ids ? flat<int64_t>(*row_ids, "row_ids", rows) : nullptr;
  }
  return dropout;
}

std::tuple<Tensor, Tensor, Tensor> dropout_normalize_add(
    const Tensor& x, const std::optional<Tensor>& residual, const std::optional<Tensor>& rng,
    double p, int64_t stream, const std::optional<Tensor>& row_ids) {
  const OnDevice device(x, "x");
  DropoutNormalizeAddParams params;
  params.dtype = dtype_of(x, "x");
  const Tensor left = operand(x, "x", 0, x);
  params.dropout = dropout_of(rng, p, stream, row_ids, left.size(0));
  params.rows = left.size(0);
  params.width = left.size(1);
  std::optional<Tensor> right;
  if (residual) {
    right = operand(*residual, "residual", params.rows, left);
    params.residual = matrix(*right);
  }
  params.x = matrix(left);
  Tensor y = make(x, {params.rows, params.width}, x.scalar_type());
  Tensor out = make(x, {residual ? params.rows : 0, params.width}, x.scalar_type());
  Tensor norm = make(x, {params.rows}, accumulate_type(params.dtype));
  params.y = y.mutable_data_ptr();
  params.out = out.mutable_data_ptr();
  params.norm = norm.mutable_data_ptr();
  device.launch(launch_dropout_normalize_add, params);
  return {y, out, norm};
}

Tensor dropout_normalize_add_backward(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_out, const Tensor& y,
    const Tensor& norm, const std::optional<Tensor>& rng, double p, int64_t stream,
    const std::optional<Tensor>& row_ids) {
  const OnDevice device(y, "y");
  DropoutNormalizeAddBackwardParams params;
  params.dtype = dtype_of(y, "y");
  params.dropout = dropout_of(rng, p, stream, row_ids, y.size(0));
  const Tensor rows_y = operand(y, "y", 0, y);
  params.rows = y.size(0);
  params.width = y.size(1);
  params.y = matrix(rows_y);
  std::optional<Tensor> first, second;
  if (grad_y) {
    first = operand(*grad_y, "grad_y", params.rows, y);
    params.grad_y = matrix(*first);
  }
  if (grad_out) {
    second = operand(*grad_out, "grad_out", params.rows, y);
    params.grad_out = matrix(*second);
  }
  params.norm = kept(norm, "norm", params.rows, params.dtype);
  Tensor grad_x = make(y, {params.rows, params.width}, y.scalar_type());
  params.grad_x = grad_x.mutable_data_ptr();
  device.launch(launch_dropout_normalize_add_backward, params);
  return grad_x;
}

}  // namespace
}  // namespace kgrec::cuda

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CUDA, m) {
  m.impl("dropout_normalize_add", TORCH_BOX(&kgrec::cuda::dropout_normalize_add));
  m.impl("dropout_normalize_add_backward", TORCH_BOX(&kgrec::cuda::dropout_normalize_add_backward));
}
