// The row kernel behind relation mean and weighted aggregation on CUDA, in either order of the
// edges. Its second half, which adds up what was cut, serves relation attention too.
#pragma once

#include "common/graph_view.h"
#include "common/types.h"
#include "cuda/launch.h"

namespace kgrec::cuda {

// "acc" is the type values are added up in: double for double, else float. For each row,
//   out = addend + scale * row_scale *
//       sum over edges of relation[rel] * (weight * source_scale * x[idx])
struct AggregateParams {
  OrderView order;
  RowPlan plan;
  DType dtype = DType::f32;
  int64_t width = 0;
  bool wide_out = false;               // out is of type acc
  Matrix x;                            // [*, width]
  Matrix relation;                     // [R, width], null for none
  const void* weight = nullptr;        // acc [E], row order; null for ones
  const void* source_scale = nullptr;  // acc [*], by idx; null for ones
  void* inverse_count = nullptr;       // acc [num_rows]: written, and scales the sum
  const void* row_scale = nullptr;     // acc [num_rows], null for ones
  double scale = 1;
  const void* addend = nullptr;  // acc [addend_rows, width]
  int64_t addend_rows = 0;
  void* out = nullptr;               // [num_rows, width]
  void* partial = nullptr;           // acc [num_chunks, width]
  int32_t* partial_count = nullptr;  // [num_chunks]
};

struct EdgeDotParams {
  OrderView order;
  RowPlan plan;
  DType dtype = DType::f32;
  int64_t width = 0;
  Matrix row_side, col_side;
  void* out = nullptr;  // acc [E], 0 where an edge is masked
};

void launch_aggregate(const AggregateParams& params, cudaStream_t stream);
void launch_edge_dot(const EdgeDotParams& params, cudaStream_t stream);

}  // namespace kgrec::cuda
