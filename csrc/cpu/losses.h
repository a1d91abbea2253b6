// Losses of rows on the CPU, forward and backward. "acc" is double for double, else float.
#pragma once

#include "common/dropout_normalize_add.h"
#include "common/graph_view.h"
#include "common/losses.h"
#include "common/types.h"

namespace kgrec::cpu {

struct ContrastLossParams {
  DType dtype = DType::f32;
  int64_t rows = 0;
  int64_t width = 0;
  double tau = 1.0;
  Matrix z1, z2;                         // [rows, width]
  const int64_t* permutation = nullptr;  // [rows]
  void* loss = nullptr;                  // acc [rows]
  void* kept = nullptr;                  // ContrastRow of acc [rows]
};

struct ContrastLossBackwardParams {
  DType dtype = DType::f32;
  int64_t width = 0;
  double tau = 1.0;
  Matrix grad;  // acc [rows, 1]
  Matrix z1, z2;
  const int64_t* permutation = nullptr;
  const int32_t* inverse = nullptr;  // [rows] of the permutation
  const void* kept = nullptr;
  void* grad_z1 = nullptr;  // [rows, width]
  void* grad_z2 = nullptr;  // [rows, width]
};

struct BprLossParams {
  DType dtype = DType::f32;
  int64_t rows = 0;
  int64_t width = 0;
  double reg_weight = 0.0, eps = 0.0;
  Matrix user, positive, negative;  // [rows, width]
  const void* weight = nullptr;     // acc [rows], null for ones
  void* gap = nullptr;              // acc [rows]
  LossSums* sums = nullptr;         // [chunks]
};

struct BprLossBackwardParams {
  DType dtype = DType::f32;
  int64_t width = 0;
  double reg_weight = 0.0, eps = 0.0;
  double scale = 0.0;  // the incoming gradient over the sum of the weights
  Matrix user, positive, negative;
  const void* weight = nullptr;
  const void* gap = nullptr;
  void* grad_user = nullptr;      // [rows, width]
  void* grad_positive = nullptr;  // [rows, width]
  void* grad_negative = nullptr;  // [rows, width]
};

struct ReconstructionLossParams {
  DType dtype = DType::f32;
  int64_t rows = 0;
  int64_t width = 0;
  Matrix head, tail;             // [rows, width]
  Matrix relation;               // [num_relations, width]
  const int32_t* ids = nullptr;  // [rows]
  const void* weight = nullptr;  // acc [rows], null for ones
  void* score = nullptr;         // acc [rows]
  LossSums* sums = nullptr;      // [chunks]
};

struct ReconstructionLossBackwardParams {
  DType dtype = DType::f32;
  int64_t width = 0;
  double scale = 0.0;  // the incoming gradient over the sum of the weights
  Matrix head, tail, relation;
  const int32_t* ids = nullptr;
  const int32_t* first = nullptr;  // [num_relations] its first slot, -1 where it has none
  const int32_t* next = nullptr;   // [rows] the next slot of the same relation, -1 for none
  const void* weight = nullptr;
  const void* score = nullptr;
  void* grad_head = nullptr;      // [rows, width]
  void* grad_tail = nullptr;      // [rows, width]
  void* grad_relation = nullptr;  // [num_relations, width]
};

}  // namespace kgrec::cpu
