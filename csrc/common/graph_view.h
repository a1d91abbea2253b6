// What kernels see of a graph: pointers into the tensors of kgrec_fast.graph, in either order.
#pragma once

#include <cstdint>

namespace kgrec {

// One order of the edges. In row order `idx` is the tail of each edge, in column order its head.
struct OrderView {
  const int64_t* ptr = nullptr;        // [num_rows + 1]
  const int32_t* idx = nullptr;        // [E]
  const int32_t* rel = nullptr;        // [E], null without relations
  const int32_t* pos = nullptr;        // [E] position in row order, null in row order itself
  const uint8_t* mask = nullptr;       // [E] non-zero where the edge is kept, null for all
  const int64_t* part_row = nullptr;   // [num_parts + 1]
  const int64_t* part_edge = nullptr;  // [num_parts + 1]
  int64_t num_rows = 0;
  int64_t num_edges = 0;
  int64_t num_parts = 0;
};

// Where relation gradients are added up: one row of the workspace per (part, relation).
struct SlotView {
  const int32_t* slot = nullptr;       // [E] row order
  const int64_t* slot_ptr = nullptr;   // [num_relations + 1]
  const int32_t* slot_perm = nullptr;  // [num_slots] slots of each relation, in order of the parts
  int64_t num_relations = 0;
  int64_t num_slots = 0;
};

// A matrix [rows, width] with unit stride in a row.
struct Matrix {
  const void* data = nullptr;
  int64_t stride = 0;  // elements from row to row
};

}  // namespace kgrec
