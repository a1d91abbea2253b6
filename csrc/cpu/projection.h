// Parameters of the kernels of dense products, which take float32 and float64.
#pragma once

#include "common/graph_view.h"
#include "common/types.h"

namespace kgrec::cpu {

// y = x w; backward adds grad_y w^T onto grad_x, and sums x^T grad_y by parts of the rows.
struct ProjectParams {
  DType dtype;
  int64_t rows, in, out;
  Matrix x;  // [rows, in]
  Matrix w;  // [in, out]
  void* y;   // [rows, out]
};

struct ProjectBackwardParams {
  ProjectParams forward;  // without y
  Matrix grad_y;
  void* grad_x;  // [rows, in]
  int64_t num_parts;
  void* part_sums;  // [num_parts, in * out]
};

// y = relu(x w1^T + b1) w2^T + b2. Backward makes the hidden rows anew, and sums the gradients of
// w1 [hidden, in], b1, w2 [out, hidden] and b2 by parts of the rows, side by side in this order.
struct HeadParams {
  DType dtype;
  int64_t rows, in, hidden, out;
  Matrix x, w1, w2;
  const void *b1, *b2;
  void* y;  // [rows, out]
  int64_t num_weights() const { return hidden * in + hidden + out * hidden + out; }
};

struct HeadBackwardParams {
  HeadParams forward;  // without b2 and y
  Matrix grad_y;
  void* grad_x;  // [rows, in]
  int64_t num_parts;
  void* part_sums;  // [num_parts, num_weights]
};

// [size] from one of each part, in the order of the parts.
struct PartSums {
  DType dtype;
  int64_t num_parts, size;
  const void* part_sums;
  void* sum;
};

}  // namespace kgrec::cpu
