// The k best of each row of scores on CUDA, after kgrec_fast/ops/topk_items.py.
#pragma once

#include "common/topk_items.h"
#include "common/types.h"
#include "cuda/launch.h"

namespace kgrec::cuda {

// So many are sorted in shared memory. Kept equal to kgrec_fast.ops.topk_items.MAX_CUDA_K by a
// test.
constexpr int kMaxTopk = 1024;

struct TopkRowsParams {
  DType dtype = DType::f32;  // float32 or float64
  int64_t rows = 0;
  int64_t num_items = 0;         // less than 2^31
  int64_t k = 0;                 // at most num_items, and kMaxTopk
  const void* scores = nullptr;  // [rows, num_items]
  KnownView known;
  uint32_t* known_bits =
      nullptr;               // [rows, words_of(num_items)] workspace; null where none is known
  void* values = nullptr;    // [rows, k]
  int64_t* items = nullptr;  // [rows, k]
};

// A bit an item.
KGREC_HOST_DEVICE inline int64_t words_of(int64_t num_items) {
  return (num_items + 31) / 32;
}

void launch_topk_rows(const TopkRowsParams& params, cudaStream_t stream);

}  // namespace kgrec::cuda
