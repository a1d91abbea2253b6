#include "cuda/scatter.h"

#include <array>

#include "cuda/binding.h"
#include "cuda/segment.h"

namespace kgrec::cuda {
namespace {

// The index, and the segments that it makes.
struct Groups {
  Tensor index;  // [rows]
  Tensor perm;   // [rows]
  Tensor ptr;    // [size + 1]
};

Groups groups_of(const OnDevice& device, const Tensor& index, int64_t rows, int64_t size) {
  STD_TORCH_CHECK(size >= 0, "size is ", size, ", expected at least 0");
  const Tensor flat_index = torch::stable::contiguous(index);
  flat<int64_t>(flat_index, "index", rows);
  // A stable sort is the only one whose permutation is always the same.
  std::array<StableIValue, 4> stack{
      torch::stable::detail::from(flat_index),
      torch::stable::detail::from(std::optional<bool>(true)),
      torch::stable::detail::from(int64_t{0}), torch::stable::detail::from(false)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  const Tensor sorted = torch::stable::detail::to<Tensor>(stack[0]);
  const Tensor perm = torch::stable::detail::to<Tensor>(stack[1]);
  Tensor ptr = make(index, {size + 1}, ScalarType::Long);
  ScatterPointersParams params;
  params.rows = rows;
  params.size = size;
  params.sorted = flat<int64_t>(sorted, "sorted index", rows);
  params.ptr = ptr.mutable_data_ptr<int64_t>();
  device.launch(launch_scatter_pointers, params);
  return {flat_index, perm, ptr};
}

SegmentParams params_of(const Tensor& src, const Groups& groups, int64_t size) {
  SegmentParams params;
  params.dtype = dtype_of(src, "src");
  params.rows = src.size(src.dim() - 2);
  params.width = src.size(src.dim() - 1);
  params.num_segments = size;
  params.ptr = groups.ptr.const_data_ptr<int64_t>();
  params.perm = flat<int64_t>(groups.perm, "permutation", params.rows);
  params.index = groups.index.const_data_ptr<int64_t>();
  params.src = src.const_data_ptr();
  return params;
}

// src [rows, width] or [batches, rows, width], index [rows] -> the same with size for rows
Tensor scatter_sum(const Tensor& src_any, const Tensor& index, int64_t size) {
  const OnDevice device(src_any, "src");
  const bool batched = src_any.dim() == 3;
  STD_TORCH_CHECK(batched || src_any.dim() == 2, "src is expected with two or three dimensions");
  const Tensor src = torch::stable::contiguous(src_any);
  const Groups groups = groups_of(device, index, src.size(src.dim() - 2), size);
  SegmentParams params = params_of(src, groups, size);
  params.batches = batched ? src.size(0) : 1;
  std::vector<int64_t> shape{size, params.width};
  if (batched) {
    shape.insert(shape.begin(), params.batches);
  }
  Tensor out = make(src, shape, src.scalar_type());
  Tensor partial = make(
      src, {params.batches, chunks_of(params.rows), 2, params.width},
      accumulate_type(params.dtype));
  params.out = out.mutable_data_ptr();
  params.partial = partial.mutable_data_ptr();
  device.launch(launch_segment_sum, params);
  return out;
}

// src [rows, width], index [rows]
Tensor scatter_softmax(const Tensor& src_any, const Tensor& index, int64_t size) {
  const OnDevice device(src_any, "src");
  STD_TORCH_CHECK(src_any.dim() == 2, "src is expected with two dimensions");
  const Tensor src = torch::stable::contiguous(src_any);
  const Groups groups = groups_of(device, index, src.size(0), size);
  SegmentParams params = params_of(src, groups, size);
  const ScalarType wide = accumulate_type(params.dtype);
  Tensor out = make(src, {params.rows, params.width}, src.scalar_type());
  Tensor top = make(src, {size, params.width}, wide);
  Tensor total = make(src, {size, params.width}, wide);
  Tensor partial = make(src, {chunks_of(params.rows), 2, params.width}, wide);
  Tensor partial_top = make(src, {chunks_of(params.rows), 2, params.width}, wide);
  params.out = out.mutable_data_ptr();
  params.top = top.mutable_data_ptr();
  params.total = total.mutable_data_ptr();
  params.partial = partial.mutable_data_ptr();
  params.partial_top = partial_top.mutable_data_ptr();
  device.launch(launch_segment_softmax, params);
  return out;
}

// out * (grad_out - sum over the group of out * grad_out), all [rows, width]
Tensor scatter_softmax_backward(
    const Tensor& grad_out, const Tensor& out_any, const Tensor& index, int64_t size) {
  const OnDevice device(out_any, "out");
  STD_TORCH_CHECK(out_any.dim() == 2, "out is expected with two dimensions");
  const Tensor out = torch::stable::contiguous(out_any);
  const Tensor grad = torch::stable::contiguous(grad_out);
  check_device(grad, "grad_out");
  STD_TORCH_CHECK(
      grad.scalar_type() == out.scalar_type() && grad.numel() == out.numel(),
      "grad_out is expected in the shape and dtype of out");
  const Groups groups = groups_of(device, index, out.size(0), size);
  SegmentParams params = params_of(out, groups, size);
  const ScalarType wide = accumulate_type(params.dtype);
  Tensor grad_src = make(out, {params.rows, params.width}, out.scalar_type());
  Tensor total = make(out, {size, params.width}, wide);
  Tensor partial = make(out, {chunks_of(params.rows), 2, params.width}, wide);
  params.grad = grad.const_data_ptr();
  params.out = grad_src.mutable_data_ptr();
  params.total = total.mutable_data_ptr();
  params.partial = partial.mutable_data_ptr();
  device.launch(launch_segment_softmax_backward, params);
  return grad_src;
}

}  // namespace
}  // namespace kgrec::cuda

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CUDA, m) {
  m.impl("scatter_sum", TORCH_BOX(&kgrec::cuda::scatter_sum));
  m.impl("scatter_softmax", TORCH_BOX(&kgrec::cuda::scatter_softmax));
  m.impl("scatter_softmax_backward", TORCH_BOX(&kgrec::cuda::scatter_softmax_backward));
}
