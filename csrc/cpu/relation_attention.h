// Relation attention on the CPU: parameters of its passes. Sums of rows are those of aggregate.h.
#pragma once

#include "common/graph_view.h"
#include "common/types.h"

namespace kgrec::cpu {

// "acc" is the type values are added up in: double for double, else float.
struct AttentionParams {
  OrderView row;
  DType dtype = DType::f32;
  int64_t width = 0;
  int64_t num_heads = 1;
  Matrix query, relation;
  const void* zero_edges = nullptr;  // acc [num_rows], or null: edges to zero nodes
  void* lse = nullptr;               // acc [num_rows, num_heads]
  void* weight = nullptr;            // acc [*, num_heads]: a_e from edge first_weight on
  int64_t first_weight = 0;
  void* partial = nullptr;         // acc [2 * num_parts, 2 * num_heads]
  int64_t* partial_row = nullptr;  // [2 * num_parts], -1 where there is no share
};

struct AttentionBackwardParams {
  OrderView row;
  SlotView slots;
  DType dtype = DType::f32;
  int64_t width = 0;
  int64_t num_heads = 1;
  Matrix value, relation;
  Matrix grad_out;                   // acc
  const void* grad_lse = nullptr;    // acc [num_rows, num_heads], null for zeros
  const void* weight = nullptr;      // acc [E, num_heads]: a_e
  const void* zero_edges = nullptr;  // acc [num_rows], or null
  void* score_grad = nullptr;        // acc [E, num_heads]: ds_e
  void* slot_grad = nullptr;         // acc [num_slots, width], zero
  void* partial = nullptr;           // acc [2 * num_parts, num_heads]
  int64_t* partial_row = nullptr;    // [2 * num_parts], -1 where there is no share
};

}  // namespace kgrec::cpu
