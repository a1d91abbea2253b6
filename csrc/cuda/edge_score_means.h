// Means of edge scores by column on CUDA, after kgrec_fast/ops/edge_score_means.py.
#pragma once

#include "common/graph_view.h"
#include "common/types.h"
#include "cuda/launch.h"

namespace kgrec::cuda {

struct EdgeScoreMeansParams {
  OrderView order;                    // of columns, without a mask of its own
  RowPlan plan;                       // of columns
  DType dtype = DType::f32;           // float32 or float64
  const uint8_t* row_mask = nullptr;  // [E] row order, null for all edges
  const void* score = nullptr;        // [E] row order
  int64_t num_items = 0;
  void* out = nullptr;               // [num_items]
  void* partial = nullptr;           // [num_chunks]
  int32_t* partial_count = nullptr;  // [num_chunks]
};

void launch_edge_score_means(const EdgeScoreMeansParams& params, cudaStream_t stream);

}  // namespace kgrec::cuda
