// Relation attention on CUDA: the pass forward over rows, and backward one over rows and one over
// columns.
#pragma once

#include "common/graph_view.h"
#include "common/types.h"
#include "cuda/launch.h"
#include "cuda/relation_grad.h"

namespace kgrec::cuda {

// "acc" is the type values are added up in: double for double, else float.
struct AttentionParams {
  OrderView row;
  RowPlan plan;
  DType dtype = DType::f32;
  int64_t width = 0;
  int64_t num_heads = 1;
  Matrix query, value, relation;
  const void* zero_edges = nullptr;  // acc [num_rows], or null: edges to zero nodes
  void* out = nullptr;               // acc [num_rows, width]
  void* lse = nullptr;               // acc [num_rows, num_heads]
  void* partial = nullptr;           // acc [num_chunks, width]: sums against the highest score
  void* partial_softmax = nullptr;   // acc [num_chunks, 2, num_heads]: highest score, total
};

struct AttentionBackwardParams {
  OrderView row;
  RowPlan plan;
  RelationSums sums;
  DType dtype = DType::f32;
  int64_t width = 0;
  int64_t num_heads = 1;
  Matrix query, value, relation, grad_out;
  const void* zero_edges = nullptr;  // acc [num_rows], or null
  const void* out = nullptr;         // acc [num_rows, width]
  const void* lse = nullptr;         // acc [num_rows, num_heads]
  const void* grad_lse = nullptr;    // acc [num_rows, num_heads]
  void* edge_grad = nullptr;         // acc [E, num_heads, 2]: a_e and ds_e
  void* grad_query = nullptr;        // acc [num_rows, width]: what heads give
  void* partial = nullptr;           // acc [num_chunks, width]
};

// What tails give, over columns: as keys, added to what the same nodes give as heads, and as
// values.
struct AttentionTailsParams {
  OrderView col;
  RowPlan plan;
  DType dtype = DType::f32;
  int64_t width = 0;
  int64_t num_heads = 1;
  Matrix query, relation, grad_out;
  const void* edge_grad = nullptr;  // acc [E, num_heads, 2]
  const void* addend = nullptr;     // acc [addend_rows, width]
  int64_t addend_rows = 0;
  void* grad_query = nullptr;     // [num_cols, width], may be the addend
  void* grad_value = nullptr;     // [num_cols, width]
  void* partial_query = nullptr;  // acc [num_chunks, width]
  void* partial_value = nullptr;  // acc [num_chunks, width]
};

void launch_attention(const AttentionParams& params, cudaStream_t stream);
void launch_attention_backward(const AttentionBackwardParams& params, cudaStream_t stream);
void launch_attention_tails(const AttentionTailsParams& params, cudaStream_t stream);

}  // namespace kgrec::cuda
