#include <tuple>

#include "cpu/dispatch.h"
#include "cpu/loss_binding.h"
#include "cpu/losses.h"

#define KGREC_KERNELS "cpu/bpr_loss_kernels.h"
#include "cpu/foreach_isa.h"

namespace kgrec::cpu {
namespace {

std::tuple<Tensor, Tensor, Tensor> bpr_loss(
    const Tensor& user, const Tensor& positive, const Tensor& negative,
    const std::optional<Tensor>& weight, double reg_weight, double eps) {
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
  const ScalarType sums = accumulate_type(params.dtype);
  Tensor gap = make(user, {params.rows}, sums);
  params.gap = gap.mutable_data_ptr();
  const LossSums all =
      sum_chunks(params.rows, params.width, [&](int64_t begin, int64_t end, LossSums* chunk_sums) {
        BprLossParams part = params;
        part.sums = chunk_sums;
        KGREC_ISA_CALL(bpr_loss_chunks, part, begin, end);
      });
  return {scalar(user, mean_of(all), sums), gap, scalar(user, all.total, ScalarType::Double)};
}

std::tuple<Tensor, Tensor, Tensor> bpr_loss_backward(
    const Tensor& grad, const Tensor& user, const Tensor& positive, const Tensor& negative,
    const std::optional<Tensor>& weight, const Tensor& gap, const Tensor& total, double reg_weight,
    double eps) {
  BprLossBackwardParams params;
  params.dtype = dtype_of(user, "user");
  const Tensor users = operand(user, "user", 0, user);
  const int64_t rows = users.size(0);
  params.width = users.size(1);
  const Tensor liked = operand(positive, "positive", rows, users);
  const Tensor others = operand(negative, "negative", rows, users);
  params.reg_weight = reg_weight;
  params.eps = eps;
  params.scale = grad_scale(grad, total, params.dtype);
  params.user = matrix(users);
  params.positive = matrix(liked);
  params.negative = matrix(others);
  params.weight = weight_of(weight, rows, params.dtype);
  params.gap = kept(gap, "gap", rows, params.dtype);
  const auto gradient = [&] { return make(user, {rows, params.width}, user.scalar_type()); };
  Tensor grad_user = gradient(), grad_positive = gradient(), grad_negative = gradient();
  params.grad_user = grad_user.mutable_data_ptr();
  params.grad_positive = grad_positive.mutable_data_ptr();
  params.grad_negative = grad_negative.mutable_data_ptr();
  parallel_rows(rows, params.width, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(bpr_loss_backward_rows, params, begin, end);
  });
  return {grad_user, grad_positive, grad_negative};
}

}  // namespace
}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CPU, m) {
  m.impl("bpr_loss", TORCH_BOX(&kgrec::cpu::bpr_loss));
  m.impl("bpr_loss_backward", TORCH_BOX(&kgrec::cpu::bpr_loss_backward));
}
