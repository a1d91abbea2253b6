// Logits and rationale scores of all edges, after kgrec_fast/ops/rationale_scores.py.
#pragma once

#include "common/graph_view.h"
#include "common/types.h"
#include "cuda/launch.h"

namespace kgrec::cuda {

// "acc" is the type values are added up in: double for double, else float.
struct RationaleParams {
  OrderView order;
  RowPlan plan;
  DType dtype = DType::f32;
  int64_t width = 0;
  int64_t num_heads = 1;
  Matrix query;                      // [*, width]
  Matrix relation;                   // [R, width], null for none
  void* logits = nullptr;            // acc [E], row order; -inf where an edge is masked
  void* scores = nullptr;            // acc [E], row order; 0 where an edge is masked
  void* partial = nullptr;           // acc [num_chunks, 2]
  int32_t* partial_count = nullptr;  // [num_chunks]
  double scale = 1;                  // of the products; set by the launches
};

void launch_rationale_scores(const RationaleParams& params, cudaStream_t stream);

}  // namespace kgrec::cuda
