#include <tuple>

#include "cuda/loss_binding.h"

namespace kgrec::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> bpr_loss(
    const Tensor& user, const Tensor& positive, const Tensor& negative,
    const std::optional<Tensor>& weight, double reg_weight, double eps) {
  const OnDevice device(user, "user");
  BprLossParams params;
  params.dtype = dtype_of(user, "user");
  const Tensor users = operand(user, "user", 0, user);
  params.rows = users.size(0);
  params.width = users.size(1);
  const Tensor liked = operand(positive, "positive", params.rows, users);
  const Tensor others = operand(negative, "negative", params.rows, users);
  params.reg_weight = reg_weight;
  params.eps = eps;
  params.user = matrix(users);
  params.positive = matrix(liked);
  params.negative = matrix(others);
  params.weight = weight_of(weight, params.rows, params.dtype);
  Tensor gap = make(user, {params.rows}, accumulate_type(params.dtype));
  params.gap = gap.mutable_data_ptr();
  MeanTensors mean(user, params.rows, params.dtype);
  params.mean = mean.view();
  device.launch(launch_bpr_loss, params);
  return {mean.loss, gap, mean.total};
}

std::tuple<Tensor, Tensor, Tensor> bpr_loss_backward(
    const Tensor& grad, const Tensor& user, const Tensor& positive, const Tensor& negative,
    const std::optional<Tensor>& weight, const Tensor& gap, const Tensor& total, double reg_weight,
    double eps) {
  const OnDevice device(user, "user");
  BprLossBackwardParams params;
  params.dtype = dtype_of(user, "user");
  const Tensor users = operand(user, "user", 0, user);
  params.rows = users.size(0);
  params.width = users.size(1);
  const Tensor liked = operand(positive, "positive", params.rows, users);
  const Tensor others = operand(negative, "negative", params.rows, users);
  params.reg_weight = reg_weight;
  params.eps = eps;
  params.grad = kept(grad, "grad", 1, params.dtype);
  params.total = flat<double>(total, "total", 1);
  params.user = matrix(users);
  params.positive = matrix(liked);
  params.negative = matrix(others);
  params.weight = weight_of(weight, params.rows, params.dtype);
  params.gap = kept(gap, "gap", params.rows, params.dtype);
  const auto gradient = [&] { return make(user, {params.rows, params.width}, user.scalar_type()); };
  Tensor grad_user = gradient(), grad_positive = gradient(), grad_negative = gradient();
  params.grad_user = grad_user.mutable_data_ptr();
  params.grad_positive = grad_positive.mutable_data_ptr();
  params.grad_negative = grad_negative.mutable_data_ptr();
  device.launch(launch_bpr_loss_backward, params);
  return {grad_user, grad_positive, grad_negative};
}

}  // namespace
}  // namespace kgrec::cuda

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CUDA, m) {
  m.impl("bpr_loss", TORCH_BOX(&kgrec::cuda::bpr_loss));
  m.impl("bpr_loss_backward", TORCH_BOX(&kgrec::cuda::bpr_loss_backward));
}
