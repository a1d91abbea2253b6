#include <limits>
#include <tuple>

#include "cuda/binding.h"
#include "cuda/losses.h"

namespace kgrec::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> contrast_loss(
    const Tensor& z1, const Tensor& z2, const Tensor& permutation, double tau) {
  const OnDevice device(z1, "z1");
  ContrastLossParams params;
  params.dtype = dtype_of(z1, "z1");
  const Tensor first = operand(z1, "z1", 0, z1);
  const int64_t rows = first.size(0);
  const Tensor second = operand(z2, "z2", rows, first);
  const Tensor order = torch::stable::contiguous(permutation);
  STD_TORCH_CHECK(rows < std::numeric_limits<int32_t>::max(), "z1 has too many rows");
  params.rows = rows;
  params.width = first.size(1);
  params.tau = tau;
  params.z1 = matrix(first);
  params.z2 = matrix(second);
  params.permutation = flat<int64_t>(order, "permutation", rows);
  const ScalarType sums = accumulate_type(params.dtype);
  Tensor loss = make(z1, {rows}, sums);
  Tensor kept_rows = make(z1, {rows, kContrastScalars}, sums);
  Tensor inverse = make(z1, {rows}, ScalarType::Int);
  params.inverse = inverse.mutable_data_ptr<int32_t>();
  params.loss = loss.mutable_data_ptr();
  params.kept = kept_rows.mutable_data_ptr();
  device.launch(launch_contrast_loss, params);
  return {loss, kept_rows, inverse};
}

std::tuple<Tensor, Tensor> contrast_loss_backward(
    const Tensor& grad, const Tensor& z1, const Tensor& z2, const Tensor& permutation,
    const Tensor& kept_rows, const Tensor& inverse, double tau) {
  const OnDevice device(z1, "z1");
  ContrastLossBackwardParams params;
  params.dtype = dtype_of(z1, "z1");
  const Tensor first = operand(z1, "z1", 0, z1);
  const int64_t rows = first.size(0);
  const Tensor second = operand(z2, "z2", rows, first);
  const Tensor order = torch::stable::contiguous(permutation);
  check_device(grad, "grad");
  STD_TORCH_CHECK(
      grad.dim() == 1 && grad.size(0) == rows &&
          grad.scalar_type() == accumulate_type(params.dtype),
      "grad is expected in the shape and dtype of the loss");
  params.rows = rows;
  params.width = first.size(1);
  params.tau = tau;
  params.grad = {grad.const_data_ptr(), grad.stride(0)};
  params.z1 = matrix(first);
  params.z2 = matrix(second);
  params.permutation = flat<int64_t>(order, "permutation", rows);
  params.inverse = flat<int32_t>(inverse, "inverse", rows);
  params.kept = kept(kept_rows, "kept_rows", rows * kContrastScalars, params.dtype);
  Tensor grad_z1 = make(z1, {rows, params.width}, z1.scalar_type());
  Tensor grad_z2 = make(z1, {rows, params.width}, z1.scalar_type());
  params.grad_z1 = grad_z1.mutable_data_ptr();
  params.grad_z2 = grad_z2.mutable_data_ptr();
  device.launch(launch_contrast_loss_backward, params);
  return {grad_z1, grad_z2};
}

}  // namespace
}  // namespace kgrec::cuda

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CUDA, m) {
  m.impl("contrast_loss", TORCH_BOX(&kgrec::cuda::contrast_loss));
  m.impl("contrast_loss_backward", TORCH_BOX(&kgrec::cuda::contrast_loss_backward));
}
