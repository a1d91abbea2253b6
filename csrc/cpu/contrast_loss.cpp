#include <tuple>

#include "cpu/dispatch.h"
#include "cpu/loss_binding.h"
#include "cpu/losses.h"

#define KGREC_KERNELS "cpu/contrast_loss_kernels.h"
#include "cpu/foreach_isa.h"

namespace kgrec::cpu {
namespace {

constexpr int64_t kGrainIds = 1 << 14;

// Writes the inverse of a permutation, and throws where it is none.
void invert(const int64_t* permutation, int64_t rows, int32_t* inverse) {
  bool inside = true, once = true;  // threads write nothing but false
  torch::stable::parallel_for(0, rows, kGrainIds, [&](int64_t begin, int64_t end) {
    bool good = true;
    for (int64_t i = begin; i < end; ++i) {
      good = good && uint64_t(permutation[i]) < uint64_t(rows);
      if (good) {
        __atomic_store_n(inverse + permutation[i], int32_t(i), __ATOMIC_RELAXED);
      }
    }
    if (!good) {
      __atomic_store_n(&inside, false, __ATOMIC_RELAXED);
    }
  });
  if (inside) {
    // Of rows that go to one place, all but one do not find themselves there.
    torch::stable::parallel_for(0, rows, kGrainIds, [&](int64_t begin, int64_t end) {
      bool good = true;
      for (int64_t i = begin; i < end; ++i) {
        good &= inverse[permutation[i]] == i;
      }
      if (!good) {
        __atomic_store_n(&once, false, __ATOMIC_RELAXED);
      }
    });
  }
  STD_TORCH_CHECK(
      inside && once, "permutation is expected to hold each of 0 to ", rows - 1, " once");
}

std::tuple<Tensor, Tensor, Tensor> contrast_loss(
    const Tensor& z1, const Tensor& z2, const Tensor& permutation, double tau) {
  ContrastLossParams params;
  params.dtype = dtype_of(z1, "z1");
  const Tensor first = operand(z1, "z1", 0, z1);
  const int64_t rows = first.size(0);
  const Tensor second = operand(z2, "z2", rows, first);
  const Tensor order = in_one_piece(permutation);
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
  invert(params.permutation, rows, inverse.mutable_data_ptr<int32_t>());
  params.loss = loss.mutable_data_ptr();
  params.kept = kept_rows.mutable_data_ptr();
  parallel_rows(rows, params.width, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(contrast_loss_rows, params, begin, end);
  });
  return {loss, kept_rows, inverse};
}

std::tuple<Tensor, Tensor> contrast_loss_backward(
    const Tensor& grad, const Tensor& z1, const Tensor& z2, const Tensor& permutation,
    const Tensor& kept_rows, const Tensor& inverse, double tau) {
  ContrastLossBackwardParams params;
  params.dtype = dtype_of(z1, "z1");
  const Tensor first = operand(z1, "z1", 0, z1);
  const int64_t rows = first.size(0);
  const Tensor second = operand(z2, "z2", rows, first);
  const Tensor order = in_one_piece(permutation);
  check_device(grad, "grad");
  STD_TORCH_CHECK(
      grad.dim() == 1 && grad.size(0) == rows &&
          grad.scalar_type() == accumulate_type(params.dtype),
      "grad is expected in the shape and dtype of the loss");
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
  parallel_rows(rows, params.width, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(contrast_loss_backward_rows, params, begin, end);
  });
  return {grad_z1, grad_z2};
}

}  // namespace
}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CPU, m) {
  m.impl("contrast_loss", TORCH_BOX(&kgrec::cpu::contrast_loss));
  m.impl("contrast_loss_backward", TORCH_BOX(&kgrec::cpu::contrast_loss_backward));
}
