#include "cpu/segment.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cpu/dispatch.h"
#include "cpu/segment_binding.h"

#define KGREC_KERNELS "cpu/segment_kernels.h"
#include "cpu/foreach_isa.h"

namespace kgrec::cpu {
namespace {

constexpr int64_t kGrainElements = 1 << 14;

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
  STD_TORCH_CHECK(src.is_cpu() && src.dim() >= 1, "src is expected on the CPU, with dimensions");
  STD_TORCH_CHECK(ptr.numel() >= 1, "ptr is empty, expected [segments + 1]");
  params.width = width_of(src);
  params.num_segments = ptr.numel() - 1;
  params.ptr = flat<int64_t>(ptr, "ptr", ptr.numel());
  params.src = src.const_data_ptr();
  STD_TORCH_CHECK(
      params.ptr[0] == 0 && params.ptr[params.num_segments] == rows, "ptr runs from ",
      params.ptr[0], " to ", params.ptr[params.num_segments], ", expected from 0 to ", rows);
  STD_TORCH_CHECK(std::is_sorted(params.ptr, params.ptr + ptr.numel()), "ptr decreases somewhere");
  return params;
}

// f(begin, end) over all segments, cut where rows and segments add up to equal shares.
template <class F>
void parallel_segments(const SegmentParams& p, const F& f) {
  const auto work = [&](int64_t s) { return p.ptr[s] * std::max<int64_t>(p.width, 1) + s; };
  const int64_t parts = work(p.num_segments) / kGrainElements + 1;
  parallel_parts(parts, [&](int64_t begin, int64_t end) {
    const auto cut = [&](int64_t part) {
      const int64_t share = work(p.num_segments) / parts;
      int64_t low = 0, high = p.num_segments;
      while (part < parts && low < high) {
        const int64_t middle = (low + high) / 2;
        if (work(middle) < part * share) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      return part < parts ? low : p.num_segments;
    };
    f(cut(begin), cut(end));
  });
}

Tensor reduce(const Tensor& src_any, const Tensor& ptr, bool mean) {
  const Tensor src = torch::stable::contiguous(src_any);
  const Tensor pointers = torch::stable::contiguous(ptr);
  SegmentParams params = params_of(src, pointers, src.size(0));
  params.mean = mean;
  std::vector<int64_t> shape(src.sizes().begin(), src.sizes().end());
  shape[0] = params.num_segments;
  Tensor out = make(src, shape, src.scalar_type());
  params.out = out.mutable_data_ptr();

  std::vector<SegmentChunk> chunks;
  for (int64_t s = 0; s < params.num_segments; ++s) {
    const int64_t end = params.ptr[s + 1];
    for (int64_t at = params.ptr[s]; end - params.ptr[s] > kLongSegment && at < end;
         at += kLongSegment) {
      chunks.push_back({s, at, std::min(at + kLongSegment, end)});
    }
  }
  params.chunks = chunks.data();
  params.num_chunks = int64_t(chunks.size());
  const Tensor partial =
      make(src, {params.num_chunks, params.width}, accumulate_type(params.dtype));
  params.partial = partial.mutable_data_ptr();
  parallel_segments(params, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(segment_sum_range, params, begin, end);
  });
  parallel_parts(params.num_chunks, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(segment_sum_chunks, params, begin, end);
  });
  KGREC_ISA_CALL(segment_merge_chunks, params);
  return out;
}

Tensor segment_mean(const Tensor& src, const Tensor& ptr) {
  return reduce(src, ptr, true);
}

// Asks for huge pages under a tensor that is about to be written as a whole: to map small ones
// costs more than to fill them. Below this size malloc may use the memory again for others.
void ask_for_huge_pages(Tensor& x) {
#ifdef MADV_HUGEPAGE
  constexpr int64_t kLeastBytes = 32 << 20, kPage = 2 << 20;
  const int64_t bytes = x.numel() * int64_t(x.element_size());
  if (bytes >= kLeastBytes) {
    char* data = static_cast<char*>(x.mutable_data_ptr());
    const int64_t before = -reinterpret_cast<intptr_t>(data) & (kPage - 1);
    // Where the system has none to give, nothing is lost.
    madvise(data + before, size_t((bytes - before) / kPage * kPage), MADV_HUGEPAGE);
  }
#endif
}

Tensor segment_spread(const Tensor& per_segment, const Tensor& ptr, int64_t rows, bool mean) {
  const Tensor src = torch::stable::contiguous(per_segment);
  const Tensor pointers = torch::stable::contiguous(ptr);
  SegmentParams params = params_of(src, pointers, rows);
  STD_TORCH_CHECK(
      src.size(0) == params.num_segments, "per_segment has ", src.size(0), " rows, expected ",
      params.num_segments);
  params.mean = mean;
  std::vector<int64_t> shape(src.sizes().begin(), src.sizes().end());
  shape[0] = rows;
  Tensor out = make(src, shape, src.scalar_type());
  ask_for_huge_pages(out);
  params.out = out.mutable_data_ptr();
  parallel_rows(rows, params.width, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(segment_spread_rows, params, begin, end);
  });
  return out;
}

}  // namespace

Tensor segment_sum(const Tensor& src, const Tensor& ptr) {
  return reduce(src, ptr, false);
}

Tensor segment_softmax(const Tensor& src_any, const Tensor& ptr) {
  const Tensor src = torch::stable::contiguous(src_any);
  const Tensor pointers = torch::stable::contiguous(ptr);
  SegmentParams params = params_of(src, pointers, src.size(0));
  Tensor out = torch::stable::empty_like(src);
  params.out = out.mutable_data_ptr();
  parallel_segments(params, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(segment_softmax_range, params, begin, end);
  });
  return out;
}

Tensor segment_softmax_backward(const Tensor& grad_out, const Tensor& out_any, const Tensor& ptr) {
  const Tensor out = torch::stable::contiguous(out_any);
  const Tensor grad = torch::stable::contiguous(grad_out);
  const Tensor pointers = torch::stable::contiguous(ptr);
  SegmentParams params = params_of(out, pointers, out.size(0));
  STD_TORCH_CHECK(
      grad.scalar_type() == out.scalar_type() && grad.numel() == out.numel(),
      "grad_out is expected in the shape and dtype of out");
  params.grad = grad.const_data_ptr();
  Tensor grad_src = torch::stable::empty_like(out);
  params.out = grad_src.mutable_data_ptr();
  parallel_segments(params, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(segment_softmax_backward_range, params, begin, end);
  });
  return grad_src;
}

}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CPU, m) {
  m.impl("segment_sum", TORCH_BOX(&kgrec::cpu::segment_sum));
  m.impl("segment_mean", TORCH_BOX(&kgrec::cpu::segment_mean));
  m.impl("segment_spread", TORCH_BOX(&kgrec::cpu::segment_spread));
  m.impl("segment_softmax", TORCH_BOX(&kgrec::cpu::segment_softmax));
  m.impl("segment_softmax_backward", TORCH_BOX(&kgrec::cpu::segment_softmax_backward));
}
