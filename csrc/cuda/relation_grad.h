// Gradients of the relations on CUDA: each run of a row pass gives a share, and the shares of each
// relation are added up in an order that depends on the graph alone.
#pragma once

#include "common/graph_view.h"
#include "common/types.h"
#include "cuda/launch.h"

namespace kgrec::cuda {

constexpr int kSumsThreads = 128;  // of a block of such a row pass
constexpr int kSumsWarps = kSumsThreads / 32;
constexpr int64_t kSumsSharedBytes = 48 << 10;
constexpr int64_t kMaxSumsBlocks = 512;

// Where shares go. Each warp adds to sums of its own in shared memory where these fit, and the work
// is then dealt out to a fixed number of blocks, whose sums are added up in order. Else each run
// has a place in a workspace, after kgrec_fast/cuda_plan.py.
struct RelationSums {
  RunPlan runs;
  bool in_shared = false;
  int64_t blocks = 0;    // in shared memory
  int64_t tile = -1;     // the part of the work at hand, -1 for all
  void* work = nullptr;  // acc [blocks, num_relations, width], or acc [workspace_rows, width]
  void* grad = nullptr;  // acc [num_relations, width], zero: what is added up
};

// The second half: from `work` to `grad`.
struct RelationSumsParams {
  RelationSums sums;
  DType dtype = DType::f32;  // of sums
  int64_t width = 0;
};

// What edges give to the mean of the runs that they stand in:
//   grad[rel] = sum over edges of left_scale[row] * left[row] * x[idx]
struct RelationGradParams {
  OrderView row;
  RowPlan plan;
  RelationSums sums;
  DType dtype = DType::f32;
  int64_t width = 0;
  Matrix x, left;
  const void* left_scale = nullptr;  // acc [num_rows]
};

void launch_relation_grad(const RelationGradParams& params, cudaStream_t stream);

// -- Choices that bindings and tests share ------------------------------------------------------

// For the sums of all warps of a block, which are of type `sums`.
inline int64_t shared_sums_bytes(DType sums, int64_t width, int64_t num_relations) {
  return kSumsWarps * num_relations * width * element_bytes(sums);
}

// A block for so many rows at least.
inline int64_t sums_blocks(const RowPlan& plan) {
  constexpr int64_t kRowsPerBlock = 32;
  const int64_t items = plan.num_chunks + plan.num_long + plan.num_short / kRowsPerBlock;
  return std::min(items / kSumsWarps + 1, kMaxSumsBlocks);
}

inline int64_t sums_work_rows(const RelationSums& sums) {
  return sums.in_shared ? sums.blocks * sums.runs.num_relations : sums.runs.workspace_rows;
}

}  // namespace kgrec::cuda
