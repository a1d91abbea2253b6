// Dropout, L2 normalisation of each row and the sum with the residual, forward and backward.
#pragma once

#include "common/dropout_normalize_add.h"
#include "common/graph_view.h"
#include "common/philox.h"
#include "common/types.h"

namespace kgrec::cpu {

struct Dropout {
  bool active = false;
  PhiloxDraw draw{};
  uint32_t threshold = 0;
  double scale = 1.0;  // of what is kept
  // The number that a row has in the draws, null for its own.
  const int64_t* row_ids = nullptr;
};

struct DropoutNormalizeAddParams {
  DType dtype = DType::f32;
  int64_t width = 0;
  Dropout dropout;
  Matrix x;              // [N, width]
  Matrix residual;       // [N, width], null where out is not wanted
  void* y = nullptr;     // [N, width]
  void* out = nullptr;   // [N, width]
  void* norm = nullptr;  // [N] accumulate type: max(norm, eps), and 0 for a row of zeros
};

struct DropoutNormalizeAddBackwardParams {
  DType dtype = DType::f32;
  int64_t width = 0;
  Dropout dropout;
  Matrix grad_y, grad_out;     // [N, width], null for zeros
  Matrix y;                    // [N, width], as forward wrote it
  const void* norm = nullptr;  // [N] accumulate type
  void* grad_x = nullptr;      // [N, width]
};

}  // namespace kgrec::cpu
