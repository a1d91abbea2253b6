// Dropout, L2 normalisation of each row and the sum with the residual on CUDA.
#pragma once

#include "common/dropout_normalize_add.h"
#include "common/graph_view.h"
#include "common/types.h"
#include "cuda/launch.h"

namespace kgrec::cuda {

struct Dropout {
  const int64_t* rng = nullptr;  // seed, step; null where nothing is dropped
  int64_t stream = 0;            // of random numbers
  uint32_t threshold = 0;
  double scale = 1.0;  // of what is kept
  // The number that a row has in the draws, null for its own.
  const int64_t* row_ids = nullptr;
};

struct DropoutNormalizeAddParams {
  DType dtype = DType::f32;
  int64_t rows = 0;
  int64_t width = 0;
  Dropout dropout;
  Matrix x;              // [rows, width]
  Matrix residual;       // [rows, width], null where out is not wanted
  void* y = nullptr;     // [rows, width]
  void* out = nullptr;   // [rows, width]
  void* norm = nullptr;  // [rows] accumulate type: max(norm, eps), and 0 for a row of zeros
};

struct DropoutNormalizeAddBackwardParams {
  DType dtype = DType::f32;
  int64_t rows = 0;
  int64_t width = 0;
  Dropout dropout;
  Matrix grad_y, grad_out;     // [rows, width], null for zeros
  Matrix y;                    // [rows, width]
  const void* norm = nullptr;  // [rows] accumulate type
  void* grad_x = nullptr;      // [rows, width]
};

void launch_dropout_normalize_add(const DropoutNormalizeAddParams& params, cudaStream_t stream);
void launch_dropout_normalize_add_backward(
    const DropoutNormalizeAddBackwardParams& params, cudaStream_t stream);

}  // namespace kgrec::cuda
