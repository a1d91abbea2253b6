// The params of the segment kernels from the arrays of a test, with the workspaces of a binding.
#pragma once

#include "cuda/segment.h"
#include "graph_args.h"

namespace kgrec::cuda_host {

// perm and index are given for segments of rows in any order. With `stats` as softmax needs them.
inline cuda::SegmentParams segment_params(Args& args, bool stats) {
  cuda::SegmentParams p;
  p.dtype = args.dtype();
  p.batches = args.integer("batches", 1);
  p.rows = args.integer("rows");
  p.num_segments = args.size("ptr") - 1;
  p.width = args.integer("width");
  p.mean = args.integer("mean", 0) != 0;
  p.ptr = args.in<int64_t>("ptr");
  p.perm = args.in_or_null<int64_t>("perm");
  p.index = args.in_or_null<int64_t>("index");
  p.src = args.in("src", p.dtype);
  p.grad = args.in_or_null("grad", p.dtype);
  p.out = args.out("out", p.dtype);
  const auto sums = [&](const char* name, int64_t rows) -> void* {
    return p.dtype == DType::f64 ? static_cast<void*>(args.workspace<double>(name, rows * p.width))
                                 : static_cast<void*>(args.workspace<float>(name, rows * p.width));
  };
  const int64_t slots = 2 * cuda::chunks_of(p.rows);
  p.partial = sums("partial", p.batches * slots);
  if (stats) {
    p.partial_top = sums("partial_top", slots);
    p.top = sums("top", p.num_segments);
    p.total = sums("total", p.num_segments);
  }
  return p;
}

}  // namespace kgrec::cuda_host
