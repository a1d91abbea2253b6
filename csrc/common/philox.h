// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, SC 2011) for host and device, and what its words
// mean here. kgrec_fast/ops/random.py says the same in torch's integers.
//
// Element i of a draw is word i % 4 of block i / 4:
//   key     = (seed bits 0..31, seed bits 32..63)
//   counter = (block bits 0..31, block bits 32..63, step bits 0..31, stream)
#pragma once

#include <cmath>
#include <cstdint>

#include "common/types.h"

namespace kgrec {

// One block of 256 numbers for each use; the hop is added within a block.
// Kept equal to kgrec_fast.ops.random.Stream by a test.
enum Stream : uint32_t {
  ENTITY_MESSAGE = 0x0000,
  USER_MESSAGE = 0x0100,
  ITEM_MESSAGE = 0x0200,
  SAMPLED_EDGES = 0x0300,
  KEPT_INTERACTIONS = 0x0400,
  EDGE_NOISE = 0x0500,
  RANDOM_MASKED_EDGES = 0x0600,
  INTERACTION_NOISE = 0x0700,
  CONTRAST_NEGATIVES = 0x0800,
  NEGATIVE_ITEMS = 0x0900,
};

constexpr int kPhiloxWords = 4;
constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kUniformBits = 24;  // as many as a float32 holds exactly

// All that a draw depends on besides the element id. POD.
struct PhiloxDraw {
  uint32_t seed_low;
  uint32_t seed_high;
  uint32_t step;
  uint32_t stream;
};

KGREC_HOST_DEVICE inline PhiloxDraw philox_draw(int64_t seed, int64_t step, int64_t stream) {
  const uint64_t s = static_cast<uint64_t>(seed);
  return {
      static_cast<uint32_t>(s), static_cast<uint32_t>(s >> 32), static_cast<uint32_t>(step),
      static_cast<uint32_t>(stream)};
}

// One round on the counter c0..c3, in place. k0 and k1 are that round's key.
KGREC_HOST_DEVICE inline void philox_round(
    uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint32_t k0, uint32_t k1) {
  const uint64_t p0 = static_cast<uint64_t>(kPhiloxMultiplier0) * c0;
  const uint64_t p1 = static_cast<uint64_t>(kPhiloxMultiplier1) * c2;
  c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
  c1 = static_cast<uint32_t>(p1);
  c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
  c3 = static_cast<uint32_t>(p0);
}

// The four words of one block.
KGREC_HOST_DEVICE inline void philox_block(
    const PhiloxDraw& draw, uint64_t block, uint32_t words[kPhiloxWords]) {
  uint32_t c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(block >> 32);
  uint32_t c2 = draw.step, c3 = draw.stream;
  uint32_t k0 = draw.seed_low, k1 = draw.seed_high;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    philox_round(c0, c1, c2, c3, k0, k1);
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

// Smallest k with k / 2^24 >= p: an element is dropped where its high 24 bits are below it.
// Integers are compared, so that every device decides alike.
inline uint32_t drop_threshold(double p) {
  return static_cast<uint32_t>(std::ceil(p * (1 << kUniformBits)));
}

KGREC_HOST_DEVICE inline bool keeps(uint32_t word, uint32_t threshold) {
  return (word >> (32 - kUniformBits)) >= threshold;
}

}  // namespace kgrec
