// Sums and softmax over rows in arbitrary index order.
#pragma once

#include "common/types.h"

namespace kgrec::cpu {

constexpr int64_t kLineBytes = 64;  // of a cache

// Threads share the rows of the result, not those of src: each walks the whole index and adds what
// falls into its range, in the order of src. So no order of threads shows in the result, nothing is
// sorted, and nothing is added atomically.
struct ScatterParams {
  DType dtype = DType::f32;
  int64_t batches = 1;  // src is [batches, rows, width]
  int64_t rows = 0;
  int64_t width = 0;
  int64_t size = 0;                // rows of the result
  const int64_t* index = nullptr;  // [rows]
  const void* src = nullptr;
  const void* grad = nullptr;  // [rows, width], gradient of a softmax
  void* out = nullptr;         // [batches, size, width], or [rows, width] of a softmax
  void* sum = nullptr;         // [batches, size, width] accumulate type
  void* top = nullptr;         // [size, width] accumulate type
  void* work = nullptr;        // [rows, width] accumulate type
  int64_t src_stride = 0;      // from row to row, where rows are added in place
  int64_t out_stride = 0;
};

}  // namespace kgrec::cpu
