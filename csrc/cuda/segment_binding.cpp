#include "cuda/binding.h"
#include "cuda/segment.h"

namespace kgrec::cuda {
namespace {

int64_t width_of(const Tensor& x) {
  int64_t width = 1;
  for (int64_t d = 1; d < x.dim(); ++d) {
    width *= x.size(d);
  }
  return width;
}

// `ptr` and what follows from it, for `rows` rows of `src`.
SegmentParams params_of(const Tensor& src, const Tensor& ptr, int64_t rows) {
  SegmentParams params;
  params.dtype = dtype_of(src, "src");
  STD_TORCH_CHECK(src.dim() >= 1, "src is expected with dimensions");
  STD_TORCH_CHECK(ptr.numel() >= 1, "ptr is empty, expected [segments + 1]");
  params.rows = rows;
  params.width = width_of(src);
  params.num_segments = ptr.numel() - 1;
  params.ptr = flat<int64_t>(ptr, "ptr", ptr.numel());
  params.src = src.const_data_ptr();
  return params;
}

std::vector<int64_t> shape_with(const Tensor& src, int64_t rows) {
  std::vector<int64_t> shape(src.sizes().begin(), src.sizes().end());
  shape[0] = rows;
  return shape;
}

Tensor reduce(const Tensor& src_any, const Tensor& ptr, bool mean) {
  const OnDevice device(src_any, "src");
  const Tensor src = torch::stable::contiguous(src_any);
  const Tensor pointers = torch::stable::contiguous(ptr);
  SegmentParams params = params_of(src, pointers, src.size(0));
  params.mean = mean;
  Tensor out = make(src, shape_with(src, params.num_segments), src.scalar_type());
  Tensor partial =
      make(src, {chunks_of(params.rows), 2, params.width}, accumulate_type(params.dtype));
  params.out = out.mutable_data_ptr();
  params.partial = partial.mutable_data_ptr();
  device.launch(launch_segment_sum, params);
  return out;
}

Tensor segment_sum(const Tensor& src, const Tensor& ptr) {
  return reduce(src, ptr, false);
}

Tensor segment_mean(const Tensor& src, const Tensor& ptr) {
  return reduce(src, ptr, true);
}

Tensor segment_spread(const Tensor& per_segment, const Tensor& ptr, int64_t rows, bool mean) {
  const OnDevice device(per_segment, "per_segment");
  const Tensor src = torch::stable::contiguous(per_segment);
  const Tensor pointers = torch::stable::contiguous(ptr);
  SegmentParams params = params_of(src, pointers, rows);
  STD_TORCH_CHECK(rows >= 0, "rows is ", rows, ", expected at least 0");
  STD_TORCH_CHECK(
      src.size(0) == params.num_segments, "per_segment has ", src.size(0), " rows, expected ",
      params.num_segments);
  params.mean = mean;
  Tensor out = make(src, shape_with(src, rows), src.scalar_type());
  params.out = out.mutable_data_ptr();
  device.launch(launch_segment_spread, params);
  return out;
}

Tensor segment_softmax(const Tensor& src_any, const Tensor& ptr) {
  const OnDevice device(src_any, "src");
  const Tensor src = torch::stable::contiguous(src_any);
  const Tensor pointers = torch::stable::contiguous(ptr);
  SegmentParams params = params_of(src, pointers, src.size(0));
  const ScalarType wide = accumulate_type(params.dtype);
  Tensor out = make(src, shape_with(src, params.rows), src.scalar_type());
  Tensor top = make(src, {params.num_segments, params.width}, wide);
  Tensor total = make(src, {params.num_segments, params.width}, wide);
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

Tensor segment_softmax_backward(const Tensor& grad_out, const Tensor& out_any, const Tensor& ptr) {
  const OnDevice device(out_any, "out");
  const Tensor out = torch::stable::contiguous(out_any);
  const Tensor grad = torch::stable::contiguous(grad_out);
  const Tensor pointers = torch::stable::contiguous(ptr);
  SegmentParams params = params_of(out, pointers, out.size(0));
  check_device(grad, "grad_out");
  STD_TORCH_CHECK(
      grad.scalar_type() == out.scalar_type() && grad.numel() == out.numel(),
      "grad_out is expected in the shape and dtype of out");
  const ScalarType wide = accumulate_type(params.dtype);
  Tensor grad_src = make(out, shape_with(out, params.rows), out.scalar_type());
  Tensor total = make(out, {params.num_segments, params.width}, wide);
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
  m.impl("segment_sum", TORCH_BOX(&kgrec::cuda::segment_sum));
  m.impl("segment_mean", TORCH_BOX(&kgrec::cuda::segment_mean));
  m.impl("segment_spread", TORCH_BOX(&kgrec::cuda::segment_spread));
  m.impl("segment_softmax", TORCH_BOX(&kgrec::cuda::segment_softmax));
  m.impl("segment_softmax_backward", TORCH_BOX(&kgrec::cuda::segment_softmax_backward));
}
