#include "cpu/projection.h"

#include <algorithm>
#include <tuple>

#include "cpu/loss_binding.h"

#define KGREC_KERNELS "cpu/projection_kernels.h"
#include "cpu/foreach_isa.h"

namespace kgrec::cpu {
namespace {

// Parts of the rows whose sums are made apart, whatever the number of threads.
constexpr int64_t kPartRows = 512, kMaxParts = 64;

int64_t parts_of(int64_t rows) {
  return std::clamp<int64_t>(rows / kPartRows, 1, kMaxParts);
}

// A row-strided matrix of exactly this shape, of the dtype of `like`.
Tensor shaped(
    const Tensor& x, const char* name, int64_t rows, int64_t columns, const Tensor& like) {
  STD_TORCH_CHECK(
      x.scalar_type() == like.scalar_type() && x.dim() == 2 && x.size(0) == rows &&
          x.size(1) == columns,
      name, " is expected in the dtype of the other operands, of ", rows, " rows and ", columns,
      " columns");
  return row_strided(x, name);
}

Tensor bias_of(const Tensor& bias, const char* name, int64_t size, DType dtype) {
  Tensor b = in_one_piece(bias);
  kept(b, name, size, dtype);  // float32 and float64 are added up in their own type
  return b;
}

// Rows of products, each thread a share, for it copies the weights.
template <class F>
void parallel_products(int64_t rows, int64_t width, const F& f) {
  constexpr int64_t kShares = 16;  // of what a thread of other kernels starts for
  parallel_rows(rows, std::max<int64_t>(1, width / kShares), f);
}

Tensor sum_of_parts(const Tensor& part_sums, DType dtype) {
  PartSums params;
  params.dtype = dtype;
  params.num_parts = part_sums.size(0);
  params.size = part_sums.size(1);
  params.part_sums = part_sums.const_data_ptr();
  Tensor sum = make(part_sums, {params.size}, part_sums.scalar_type());
  params.sum = sum.mutable_data_ptr();
  parallel_rows(params.size, params.num_parts, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(sum_parts, params, begin, end);
  });
  return sum;
}

// The operands of a product; `held` keeps copies where there are some.
ProjectParams project_params(const Tensor& x, const Tensor& weight, std::vector<Tensor>& held) {
  ProjectParams params;
  params.dtype = whole_dtype_of(x, "x");
  held.push_back(row_strided(x, "x"));
  params.rows = x.size(0);
  params.in = x.size(1);
  params.out = weight.size(-1);
  held.push_back(shaped(weight, "weight", params.in, params.out, x));
  params.x = matrix(held[0]);
  params.w = matrix(held[1]);
  return params;
}

Tensor project(const Tensor& x, const Tensor& weight) {
  std::vector<Tensor> held;
  ProjectParams params = project_params(x, weight, held);
  Tensor y = make(x, {params.rows, params.out}, x.scalar_type());
  params.y = y.mutable_data_ptr();
  parallel_products(params.rows, params.in * params.out, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(project_rows, params, begin, end);
  });
  return y;
}

Tensor project_backward_onto(
    Tensor grad_x, const Tensor& grad_out, const Tensor& x, const Tensor& weight) {
  std::vector<Tensor> held;
  ProjectBackwardParams params;
  params.forward = project_params(x, weight, held);
  const ProjectParams& forward = params.forward;
  const Tensor grad = shaped(grad_out, "grad_out", forward.rows, forward.out, x);
  params.grad_y = matrix(grad);
  kept(grad_x, "grad_x", forward.rows * forward.in, forward.dtype);
  params.grad_x = grad_x.mutable_data_ptr();
  params.num_parts = parts_of(forward.rows);
  Tensor sums = make(x, {params.num_parts, forward.in * forward.out}, x.scalar_type());
  params.part_sums = sums.mutable_data_ptr();
  torch::stable::parallel_for(0, params.num_parts, 1, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(project_backward_parts, params, begin, end);
  });
  return torch::stable::view(sum_of_parts(sums, forward.dtype), {forward.in, forward.out});
}

// The operands of a head; `held` keeps copies where there are some.
HeadParams head_params(
    const Tensor& x, const Tensor& w1, const Tensor& b1, const Tensor& w2,
    std::vector<Tensor>& held) {
  HeadParams params;
  params.dtype = whole_dtype_of(x, "x");
  held.push_back(row_strided(x, "x"));
  params.rows = x.size(0);
  params.in = x.size(1);
  params.hidden = w1.size(0);
  params.out = w2.size(0);
  held.push_back(shaped(w1, "w1", params.hidden, params.in, x));
  held.push_back(shaped(w2, "w2", params.out, params.hidden, x));
  held.push_back(bias_of(b1, "b1", params.hidden, params.dtype));
  params.x = matrix(held[0]);
  params.w1 = matrix(held[1]);
  params.w2 = matrix(held[2]);
  params.b1 = held[3].const_data_ptr();
  return params;
}

Tensor projection_head(
    const Tensor& x, const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2) {
  std::vector<Tensor> held;
  HeadParams params = head_params(x, w1, b1, w2, held);
  const Tensor last = bias_of(b2, "b2", params.out, params.dtype);
  params.b2 = last.const_data_ptr();
  Tensor y = make(x, {params.rows, params.out}, x.scalar_type());
  params.y = y.mutable_data_ptr();
  const int64_t products = params.hidden * (params.in + params.out);
  parallel_products(params.rows, products, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(head_rows, params, begin, end);
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> projection_head_backward(
    const Tensor& grad_out, const Tensor& x, const Tensor& w1, const Tensor& b1, const Tensor& w2) {
  std::vector<Tensor> held;
  HeadBackwardParams params;
  params.forward = head_params(x, w1, b1, w2, held);
  const HeadParams& forward = params.forward;
  const Tensor grad = shaped(grad_out, "grad_out", forward.rows, forward.out, x);
  params.grad_y = matrix(grad);
  Tensor grad_x = make(x, {forward.rows, forward.in}, x.scalar_type());
  params.grad_x = grad_x.mutable_data_ptr();
  params.num_parts = parts_of(forward.rows);
  Tensor sums = make(x, {params.num_parts, forward.num_weights()}, x.scalar_type());
  params.part_sums = sums.mutable_data_ptr();
  torch::stable::parallel_for(0, params.num_parts, 1, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(head_backward_parts, params, begin, end);
  });
  const Tensor sum = sum_of_parts(sums, forward.dtype);
  int64_t at = 0;
  const auto next = [&](std::vector<int64_t> shape) {
    const int64_t begin = at;
    at += shape.size() == 2 ? shape[0] * shape[1] : shape[0];
    Tensor part = make(x, shape, x.scalar_type());
    const char* from = static_cast<const char*>(sum.const_data_ptr());
    std::memcpy(
        part.mutable_data_ptr(), from + begin * part.element_size(),
        size_t((at - begin) * part.element_size()));
    return part;
  };
  Tensor grad_w1 = next({forward.hidden, forward.in}), grad_b1 = next({forward.hidden});
  Tensor grad_w2 = next({forward.out, forward.hidden}), grad_b2 = next({forward.out});
  return {grad_x, grad_w1, grad_b1, grad_w2, grad_b2};
}

}  // namespace
}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CPU, m) {
  m.impl("project", TORCH_BOX(&kgrec::cpu::project));
  m.impl("project_backward_onto", TORCH_BOX(&kgrec::cpu::project_backward_onto));
  m.impl("projection_head", TORCH_BOX(&kgrec::cpu::projection_head));
  m.impl("projection_head_backward", TORCH_BOX(&kgrec::cpu::projection_head_backward));
}
