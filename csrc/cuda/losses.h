// Losses of rows on CUDA, forward and backward. "acc" is double for double, else float.
#pragma once

#include "common/dropout_normalize_add.h"
#include "common/graph_view.h"
#include "common/losses.h"
#include "common/types.h"
#include "cuda/launch.h"

namespace kgrec::cuda {

struct ContrastLossParams {
  DType dtype = DType::f32;
  int64_t rows = 0;
  int64_t width = 0;
  double tau = 1.0;
  Matrix z1, z2;                         // [rows, width]
  const int64_t* permutation = nullptr;  // [rows]
  int32_t* inverse = nullptr;            // [rows] of the permutation
  void* loss = nullptr;                  // acc [rows]
  void* kept = nullptr;                  // ContrastRow of acc [rows]
};

struct ContrastLossBackwardParams {
  DType dtype = DType::f32;
  int64_t rows = 0;
  int64_t width = 0;
  double tau = 1.0;
  Matrix grad;  // acc [rows, 1]
  Matrix z1, z2;
  const int64_t* permutation = nullptr;
  const int32_t* inverse = nullptr;
  const void* kept = nullptr;
  void* grad_z1 = nullptr;  // [rows, width]
  void* grad_z2 = nullptr;  // [rows, width]
};

// A weighted mean, from the sums of chunks of rows.
struct LossMean {
  LossSums* sums = nullptr;  // [chunks]
  void* loss = nullptr;      // acc, one
  double* total = nullptr;   // one
};

struct LossMeanParams {
  int64_t chunks = 0;
  LossMean mean;
};

struct BprLossParams {
  DType dtype = DType::f32;
  int64_t rows = 0;
  int64_t width = 0;
  double reg_weight = 0.0, eps = 0.0;
  Matrix user, positive, negative;  // [rows, width]
  const void* weight = nullptr;     // acc [rows], null for ones
  void* gap = nullptr;              // acc [rows]
  LossMean mean;
};

struct BprLossBackwardParams {
  DType dtype = DType::f32;
  int64_t rows = 0;
  int64_t width = 0;
  double reg_weight = 0.0, eps = 0.0;
  const void* grad = nullptr;     // acc, one
  const double* total = nullptr;  // one: the sum of the weights
  Matrix user, positive, negative;
  const void* weight = nullptr;
  const void* gap = nullptr;
  void* grad_user = nullptr;      // [rows, width]
  void* grad_positive = nullptr;  // [rows, width]
  void* grad_negative = nullptr;  // [rows, width]
};

// Of the slots.
struct RelationIds {
  const void* data = nullptr;  // [rows] int64, or int32
  bool wide = true;
};

struct ReconstructionLossParams {
  DType dtype = DType::f32;
  int64_t rows = 0;
  int64_t width = 0;
  int64_t num_relations = 0;
  Matrix head, tail;  // [rows, width]
  Matrix relation;    // [num_relations, width]
  RelationIds ids;
  const void* weight = nullptr;  // acc [rows], null for ones
  void* score = nullptr;         // acc [rows]
  LossMean mean;
};

struct ReconstructionLossBackwardParams {
  DType dtype = DType::f32;
  int64_t rows = 0;
  int64_t width = 0;
  int64_t num_relations = 0;
  const void* grad = nullptr;     // acc, one
  const double* total = nullptr;  // one: the sum of the weights
  Matrix head, tail, relation;
  RelationIds ids;
  const void* weight = nullptr;
  const void* score = nullptr;
  void* grad_head = nullptr;      // [rows, width]
  void* grad_tail = nullptr;      // [rows, width]
  void* grad_relation = nullptr;  // [num_relations, width]
};

inline int64_t loss_chunks(int64_t rows) {
  return (rows + kLossChunk - 1) / kLossChunk;
}

void launch_contrast_loss(const ContrastLossParams& params, cudaStream_t stream);
void launch_contrast_loss_backward(const ContrastLossBackwardParams& params, cudaStream_t stream);
void launch_bpr_loss(const BprLossParams& params, cudaStream_t stream);
void launch_bpr_loss_backward(const BprLossBackwardParams& params, cudaStream_t stream);
void launch_reconstruction_loss(const ReconstructionLossParams& params, cudaStream_t stream);
void launch_reconstruction_loss_backward(
    const ReconstructionLossBackwardParams& params, cudaStream_t stream);

}  // namespace kgrec::cuda
