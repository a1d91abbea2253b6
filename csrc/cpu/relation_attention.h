// Relation attention on the CPU: parameters of its passes.
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
  Matrix query, value, relation;
  void* out = nullptr;             // acc [num_rows, width]
  void* lse = nullptr;             // acc [num_rows, num_heads]
  void* partial = nullptr;         // acc [2 * num_parts, width + 2 * num_heads]
  int64_t* partial_row = nullptr;  // [2 * num_parts], -1 where there is no share
};

struct AttentionBackwardParams {
  OrderView row, col;
  SlotView slots;
  DType dtype = DType::f32;
  int64_t width = 0;
  int64_t num_heads = 1;
  Matrix query, value, relation;
  Matrix grad_out;                 // acc
  const void* grad_lse = nullptr;  // acc [num_rows, num_heads]
  const void* out = nullptr;       // acc [num_rows, width]
  const void* lse = nullptr;       // acc [num_rows, num_heads]
  void* edge_weight = nullptr;     // acc [E, 2, num_heads]: a_e and ds_e, row order
  void* slot_grad = nullptr;       // acc [num_slots, width], zero
  void* row_grad_query = nullptr;  // acc [N, width]: what the row pass finds
  void* grad_query = nullptr;      // [N, width]
  void* grad_value = nullptr;      // [M, width]
  void* grad_relation = nullptr;   // [num_relations, width]
  void* partial = nullptr;         // acc [2 * parts of either order, 2 * width]
  int64_t* partial_row = nullptr;  // [2 * parts of either order]
};

}  // namespace kgrec::cpu
