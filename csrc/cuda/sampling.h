// Sampling by counters, on CUDA.
#pragma once

#include <cstdint>

#include "cuda/launch.h"

namespace kgrec::cuda {

// Of all: `rng` is (seed, step), `stream` that of random numbers.
struct SampleRelationsParams {
  const int64_t* rng = nullptr;
  int64_t stream = 0;
  const int32_t* rel = nullptr;    // [E]
  const int32_t* rank = nullptr;   // [E]
  const int64_t* count = nullptr;  // [R] edges of each relation
  double rate = 0;
  int64_t num_edges = 0;
  uint8_t* out = nullptr;  // [E]
};

struct SampleEdgesParams {
  const int64_t* rng = nullptr;
  int64_t stream = 0;
  int64_t n = 0;
  int64_t keep = 0;
  uint8_t* out = nullptr;  // [n]
};

struct PermutationParams {
  const int64_t* rng = nullptr;
  int64_t stream = 0;
  int64_t n = 0;
  int64_t count = 0;
  int64_t* out = nullptr;  // [count]
};

struct DropoutMaskParams {
  const int64_t* rng = nullptr;
  int64_t stream = 0;
  int64_t n = 0;
  uint32_t threshold = 0;
  uint8_t* out = nullptr;  // [n], 4-byte aligned
};

struct NegativesParams {
  const int64_t* rng = nullptr;
  int64_t stream = 0;
  const int64_t* user = nullptr;  // [B]
  const int64_t* ptr = nullptr;   // [num_users + 1]
  const int32_t* gap = nullptr;
  int64_t num_users = 0;
  int64_t num_items = 0;
  int64_t count = 0;
  int64_t* out = nullptr;  // [B]
};

void launch_sample_relations(const SampleRelationsParams& params, cudaStream_t stream);
void launch_sample_edges(const SampleEdgesParams& params, cudaStream_t stream);
void launch_permutation(const PermutationParams& params, cudaStream_t stream);
void launch_dropout_mask(const DropoutMaskParams& params, cudaStream_t stream);
void launch_negatives(const NegativesParams& params, cudaStream_t stream);

}  // namespace kgrec::cuda
