#include "cpu/scatter.h"

#include <atomic>

#include "cpu/dispatch.h"
#include "cpu/segment.h"
#include "cpu/segment_binding.h"

#define KGREC_KERNELS "cpu/scatter_kernels.h"
#include "cpu/foreach_isa.h"

namespace kgrec::cpu {
namespace {

constexpr int64_t kGrainElements = 1 << 14;
// Narrower rows cost less than another walk over the index.
constexpr int64_t kSharedWidth = 8;

// Checks the index; says whether it is sorted.
bool look_at_index(const ScatterParams& p) {
  std::atomic<bool> in_range{true}, sorted{true};
  torch::stable::parallel_for(0, p.rows, kGrainElements, [&](int64_t begin, int64_t end) {
    bool good, rising;
    KGREC_ISA_CALL(scatter_look, p, begin, end, &good, &rising);
    if (!good) {
      in_range = false;
    }
    if (!rising) {
      sorted = false;
    }
  });
  for (int64_t e = 0; !in_range && e < p.rows; ++e) {
    STD_TORCH_CHECK(
        p.index[e] >= 0 && p.index[e] < p.size, "index[", e, "] is ", p.index[e],
        ", expected 0 <= index < ", p.size);
  }
  return sorted;
}

// Bounds of ranges of rows that hold about equally many edges, by a sample of the index. One range
// where threads would not pay. The result does not depend on the choice.
std::vector<int64_t> ranges_of(const ScatterParams& p, int64_t wanted) {
  const bool pays = p.width >= kSharedWidth && p.rows * p.width >= 4 * kGrainElements;
  const int64_t parts = pays ? std::min(wanted, p.size) : 1;
  std::vector<int64_t> bounds{0};
  if (parts > 1) {
    // Enough of them that ranges differ by some percent, and few beside the rows that are added up.
    constexpr int64_t kSamplesPerPart = 256, kLeastStep = 16;
    const int64_t step = std::max(kLeastStep, p.rows / (kSamplesPerPart * parts));
    std::vector<int64_t> sample;
    for (int64_t e = 0; e < p.rows; e += step) {
      sample.push_back(p.index[e]);
    }
    std::sort(sample.begin(), sample.end());
    for (int64_t part = 1; part < parts; ++part) {
      const int64_t bound = sample[part * int64_t(sample.size()) / parts];
      bounds.push_back(std::max(bounds.back(), bound));
    }
  }
  bounds.push_back(p.size);
  return bounds;
}

template <class F>
void parallel_ranges(const std::vector<int64_t>& bounds, const F& f) {
  parallel_parts(int64_t(bounds.size()) - 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (bounds[i] < bounds[i + 1]) {
        f(bounds[i], bounds[i + 1]);
      }
    }
  });
}

// Pointers into a sorted index.
Tensor segments_of(const ScatterParams& p, const Tensor& index) {
  Tensor ptr = make(index, {p.size + 1}, ScalarType::Long);
  int64_t* to = ptr.mutable_data_ptr<int64_t>();
  int64_t row = 0;
  for (int64_t e = 0; e < p.rows; ++e) {
    while (row <= p.index[e]) {
      to[row++] = e;
    }
  }
  std::fill(to + row, to + p.size + 1, p.rows);
  return ptr;
}

ScatterParams params_of(const Tensor& src, const Tensor& index, int64_t size) {
  ScatterParams params;
  params.dtype = dtype_of(src, "src");
  STD_TORCH_CHECK(src.is_cpu(), "src is expected on the CPU");
  STD_TORCH_CHECK(size >= 0, "size is ", size, ", expected at least 0");
  params.rows = src.size(src.dim() - 2);
  params.width = src.size(src.dim() - 1);
  params.size = size;
  params.index = flat<int64_t>(index, "index", params.rows);
  params.src = src.const_data_ptr();
  return params;
}

// src [rows, width] or [batches, rows, width], index [rows] -> the same with size for rows
Tensor scatter_sum(const Tensor& src_any, const Tensor& index_any, int64_t size) {
  const bool batched = src_any.dim() == 3;
  STD_TORCH_CHECK(batched || src_any.dim() == 2, "src is expected with two or three dimensions");
  const Tensor src = torch::stable::contiguous(src_any);
  const Tensor index = torch::stable::contiguous(index_any);
  ScatterParams params = params_of(src, index, size);
  params.batches = batched ? src.size(0) : 1;
  std::vector<int64_t> shape{size, params.width};
  if (batched) {
    shape.insert(shape.begin(), params.batches);
  }
  const bool sorted = look_at_index(params);
  if (sorted && params.batches == 1 && params.width >= kSharedWidth) {
    const Tensor rows = torch::stable::view(src, {params.rows, params.width});
    return torch::stable::view(segment_sum(rows, segments_of(params, index)), shape);
  }
  Tensor out = make(src, shape, src.scalar_type());
  std::optional<Tensor> sum;
  if (params.dtype == DType::bf16 || params.dtype == DType::f16) {
    sum = make(src, shape, ScalarType::Float);
  }
  params.out = out.mutable_data_ptr();
  params.sum = sum ? sum->mutable_data_ptr() : params.out;
  const int64_t threads = torch::stable::get_num_threads();
  const std::vector<int64_t> bounds =
      ranges_of(params, (threads + params.batches - 1) / std::max<int64_t>(params.batches, 1));
  const int64_t ranges = int64_t(bounds.size()) - 1;
  // Many short batches together make a task worth its start.
  const int64_t grain = std::max<int64_t>(
      1, kGrainElements / std::max<int64_t>(1, (params.rows + size) * params.width));
  const auto tasks = [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t range = task % ranges;
      KGREC_ISA_CALL(scatter_sum_range, params, task / ranges, bounds[range], bounds[range + 1]);
    }
  };
  torch::stable::parallel_for(0, params.batches * ranges, grain, tasks);
  return out;
}

// Adds the rows of src [rows, width] to the rows index [rows] of x [size, width]; without
// include_self to zero in their place. Threads share the columns, whole lines of the cache each.
void scatter_add_(Tensor x, const Tensor& src_any, const Tensor& index_any, bool include_self) {
  ScatterParams params;
  params.dtype = whole_dtype_of(x, "x");  // sums of half types would be rounded after each term
  const Tensor src = operand(src_any, "src", 0, operand(x, "x", 0, x));
  STD_TORCH_CHECK(
      (x.size(1) <= 1 || x.stride(1) == 1) && (x.size(0) <= 1 || x.stride(0) >= x.size(1)),
      "x is expected with unit stride in rows that do not overlap");
  STD_TORCH_CHECK(
      index_any.scalar_type() == ScalarType::Long, "index has dtype ",
      torch::headeronly::toString(index_any.scalar_type()), ", expected int64");
  const Tensor index = torch::stable::contiguous(index_any);
  params.rows = src.size(0);
  params.width = x.size(1);
  params.size = x.size(0);
  params.index = flat<int64_t>(index, "index", params.rows);
  params.src = src.const_data_ptr();
  params.src_stride = src.stride(0);
  params.out = x.mutable_data_ptr();
  params.out_stride = x.stride(0);
  look_at_index(params);
  if (params.rows == 0 || params.width == 0) {
    return;
  }
  const int64_t columns = kLineBytes / int64_t(x.element_size());
  const int64_t blocks = (params.width + columns - 1) / columns;
  const int64_t grain = std::max<int64_t>(1, kGrainElements / (params.rows * columns));
  torch::stable::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(
        scatter_add_columns, params, include_self, begin * columns,
        std::min(end * columns, params.width));
  });
}

// src [rows, width], index [rows]
Tensor scatter_softmax(const Tensor& src_any, const Tensor& index_any, int64_t size) {
  STD_TORCH_CHECK(src_any.dim() == 2, "src is expected with two dimensions");
  const Tensor src = torch::stable::contiguous(src_any);
  const Tensor index = torch::stable::contiguous(index_any);
  ScatterParams params = params_of(src, index, size);
  if (look_at_index(params)) {
    return segment_softmax(src, segments_of(params, index));
  }
  const ScalarType wide = accumulate_type(params.dtype);
  Tensor out = make(src, {params.rows, params.width}, src.scalar_type());
  Tensor top = make(src, {size, params.width}, wide);
  std::optional<Tensor> work;
  if (src.scalar_type() != wide) {
    work = make(src, {params.rows, params.width}, wide);
  }
  params.out = out.mutable_data_ptr();
  params.work = work ? work->mutable_data_ptr() : params.out;
  params.top = params.sum = top.mutable_data_ptr();  // one after the other
  const std::vector<int64_t> bounds = ranges_of(params, torch::stable::get_num_threads());
  parallel_ranges(bounds, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(scatter_top_range, params, begin, end);
  });
  parallel_rows(params.rows, params.width, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(scatter_exp_rows, params, begin, end);
  });
  parallel_ranges(bounds, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(scatter_add_work, params, begin, end);
  });
  parallel_rows(params.rows, params.width, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(scatter_divide_rows, params, begin, end);
  });
  return out;
}

// out * (grad_out - sum over the group of out * grad_out), all [rows, width]
Tensor scatter_softmax_backward(
    const Tensor& grad_out, const Tensor& out_any, const Tensor& index_any, int64_t size) {
  STD_TORCH_CHECK(out_any.dim() == 2, "out is expected with two dimensions");
  const Tensor out = torch::stable::contiguous(out_any);
  const Tensor grad = torch::stable::contiguous(grad_out);
  const Tensor index = torch::stable::contiguous(index_any);
  STD_TORCH_CHECK(
      grad.scalar_type() == out.scalar_type() && grad.numel() == out.numel(),
      "grad_out is expected in the shape and dtype of out");
  ScatterParams params = params_of(out, index, size);
  if (look_at_index(params)) {
    return segment_softmax_backward(grad, out, segments_of(params, index));
  }
  const ScalarType wide = accumulate_type(params.dtype);
  Tensor grad_src = make(out, {params.rows, params.width}, out.scalar_type());
  Tensor sum = make(out, {size, params.width}, wide);
  Tensor work = make(out, {params.rows, params.width}, wide);
  params.grad = grad.const_data_ptr();
  params.out = grad_src.mutable_data_ptr();
  params.sum = sum.mutable_data_ptr();
  params.work = work.mutable_data_ptr();
  parallel_rows(params.rows, params.width, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(scatter_multiply_rows, params, begin, end);
  });
  parallel_ranges(
      ranges_of(params, torch::stable::get_num_threads()),
      [&](int64_t begin, int64_t end) { KGREC_ISA_CALL(scatter_add_work, params, begin, end); });
  parallel_rows(params.rows, params.width, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(scatter_softmax_backward_rows, params, begin, end);
  });
  return grad_src;
}

}  // namespace
}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CPU, m) {
  m.impl("scatter_sum", TORCH_BOX(&kgrec::cpu::scatter_sum));
  m.impl("scatter_add_", TORCH_BOX(&kgrec::cpu::scatter_add_));
  m.impl("scatter_softmax", TORCH_BOX(&kgrec::cpu::scatter_softmax));
  m.impl("scatter_softmax_backward", TORCH_BOX(&kgrec::cpu::scatter_softmax_backward));
}
