// What kernels see of a graph: pointers into the tensors of kgrec_fast.graph, in either order.
// kgrec_fast/cuda_plan.py says how CUDA kernels share out the work.
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
  bool mask_by_pos = false;            // the mask of a column order is in row order
  const int64_t* part_row = nullptr;   // [num_parts + 1], shares of CPU threads
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

// The rows of an order as CUDA kernels take them: each is in one of the three bins.
struct RowPlan {
  const int32_t* short_row = nullptr;  // [num_short] longest first
  const int32_t* long_row = nullptr;   // [num_long] longest first
  const int32_t* chunk = nullptr;      // [num_chunks, 3] row, begin, end (edges)
  const int32_t* hub = nullptr;        // [num_hubs, 3] row, first chunk, end chunk
  int64_t num_short = 0;
  int64_t num_long = 0;
  int64_t num_chunks = 0;
  int64_t num_hubs = 0;
};

// Columns of RunPlan::tile.
enum TileColumn : int { kTileShort, kTileLong, kTileChunk, kTilePiece, kTileSum, kTileColumns };

// Where the runs of a CUDA row pass leave their shares of the relation gradients: in the places of
// a workspace that each tile of the work has for itself.
struct RunPlan {
  const int32_t* place = nullptr;  // [E] row order: place of each edge's run
  const int32_t* tile = nullptr;   // [num_tiles + 1, kTileColumns]
  const int32_t* perm = nullptr;   // [num_runs] places by tile and relation
  const int32_t* piece = nullptr;  // [num_pieces + 1] pointers into perm
  const int32_t* sum = nullptr;    // [num_sums, 3] relation, first piece, end piece
  int64_t num_relations = 0;
  int64_t num_tiles = 0;
  int64_t num_runs = 0;
  int64_t num_pieces = 0;
  int64_t num_sums = 0;
  int64_t workspace_rows = 0;  // no tile has more places
};

// As many places are never too many. Kept equal to kgrec_fast.cuda_plan.MIN_WORKSPACE by a test.
constexpr int64_t kMinWorkspaceRows = 65536;

// A matrix [rows, width] with unit stride in a row.
struct Matrix {
  const void* data = nullptr;
  int64_t stride = 0;  // elements from row to row
};

}  // namespace kgrec
