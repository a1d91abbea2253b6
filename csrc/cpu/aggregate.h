// The row kernel behind relation mean and weighted aggregation, in either order of the edges.
#pragma once

#include "common/graph_view.h"
#include "common/types.h"

namespace kgrec::cpu {

struct AggregateParams {
  OrderView order;
  DType dtype = DType::f32;
  int64_t width = 0;
  Matrix x;                            // [*, width]
  Matrix relation;                     // [R, width], null for none
  const void* weight = nullptr;        // [E] accumulate type, row order; null for ones
  const void* source_scale = nullptr;  // [*] accumulate type, by idx; null for ones
  void* inverse_count = nullptr;       // [num_rows] accumulate type: written, and scales the sum
  void* out = nullptr;                 // [num_rows, width]
  void* partial = nullptr;             // [2 * num_parts, width] accumulate type
  int64_t* partial_row = nullptr;      // [2 * num_parts], -1 where there is no share
  int64_t* partial_count = nullptr;    // [2 * num_parts]
};

struct EdgeDotParams {
  OrderView order;
  DType dtype = DType::f32;
  int64_t width = 0;
  Matrix row_side, col_side;
  void* out = nullptr;  // [E] accumulate type
};

// Fills out, with `partial` as workspace, on all threads.
void run_aggregate(AggregateParams& params);

}  // namespace kgrec::cpu
