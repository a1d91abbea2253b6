// The row kernel behind relation mean, weighted aggregation and relation attention, in either order
// of the edges.
#pragma once

#include "common/graph_view.h"
#include "common/types.h"

namespace kgrec::cpu {

// "acc" is the type values are added up in: double for double, else float. For each row and each of
// its heads (equal slices of the width, one but for attention),
//   out = scale * row_scale * sum over edges of relation[rel] * (weight * source_scale * x[idx]) +
//   addend
struct AggregateParams {
  OrderView order;
  DType dtype = DType::f32;
  int64_t width = 0;
  int64_t num_heads = 1;
  bool wide_x = false;                 // x is of type acc
  bool wide_out = false;               // out is of type acc
  Matrix x;                            // [*, width]
  Matrix relation;                     // [R, width], null for none
  const void* weight = nullptr;        // acc [E, num_heads], row order; null for ones
  int64_t first_weight = 0;            // edge that the first weight belongs to
  const void* source_scale = nullptr;  // acc [*], by idx; null for ones
  void* inverse_count = nullptr;       // acc [num_rows]: written, and scales the sum
  const void* row_scale = nullptr;     // acc [num_rows], null for ones
  double scale = 1;
  const void* addend = nullptr;  // acc [addend_rows, width]
  int64_t addend_rows = 0;
  void* out = nullptr;               // [num_rows, width], null where only slots are wanted
  void* partial = nullptr;           // acc [2 * num_parts, width]
  int64_t* partial_row = nullptr;    // [2 * num_parts], -1 where there is no share
  int64_t* partial_count = nullptr;  // [2 * num_parts]
  // Gradients of the relations, in row order: slot += left[row] * left_scale[row] * scale * sum of
  // (weight * x[idx]), a run of equal relation at a time.
  SlotView slots;
  void* slot_grad = nullptr;         // acc [num_slots, width], null where they are not wanted
  Matrix left;                       // [num_rows, width]
  const void* left_scale = nullptr;  // acc [num_rows], null for ones
};

struct EdgeDotParams {
  OrderView order;
  DType dtype = DType::f32;
  int64_t width = 0;
  Matrix row_side, col_side;
  void* out = nullptr;  // acc [E]
};

// Runs parts [first, last) on all threads, with `partial` as workspace. No other part may hold a
// share of their rows.
void run_aggregate(AggregateParams& params, int64_t first, int64_t last);

inline void run_aggregate(AggregateParams& params) {
  run_aggregate(params, 0, params.order.num_parts);
}

// Adds up the slots of each relation, in the order of the parts, to grad_relation [num_relations,
// width].
void run_reduce_slots(const AggregateParams& params, void* grad_relation);

}  // namespace kgrec::cpu
