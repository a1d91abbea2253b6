// Sampling by counters, for ranges of elements.
#pragma once

#include "common/feistel.h"
#include "common/philox.h"

namespace kgrec::cpu {

// What an edge takes from its relation.
struct RelationShare {
  uint32_t n;      // edges of the relation
  uint32_t tweak;  // of its permutation
  uint32_t keep;   // how many are kept
};

struct SampleRelationsParams {
  uint32_t keys[kFeistelWords];
  const RelationShare* share = nullptr;  // [R]
  const int32_t* rel = nullptr;          // [E]
  const int32_t* rank = nullptr;         // [E]
  uint8_t* out = nullptr;                // [E]
};

struct SampleEdgesParams {
  uint32_t keys[kFeistelWords];
  uint32_t n = 0;
  uint32_t keep = 0;
  uint8_t* out = nullptr;  // [n]
};

struct PermutationParams {
  uint32_t keys[kFeistelWords];
  uint32_t n = 0;
  int64_t* out = nullptr;  // [count]
};

struct DropoutMaskParams {
  PhiloxDraw draw;
  uint32_t threshold = 0;
  uint8_t* out = nullptr;  // [n]
};

struct NegativesParams {
  PhiloxDraw draw;
  const int64_t* user = nullptr;  // [B]
  const int64_t* ptr = nullptr;   // [num_users + 1]
  const int32_t* gap = nullptr;
  int64_t num_items = 0;
  int64_t* out = nullptr;  // [B]
};

}  // namespace kgrec::cpu
