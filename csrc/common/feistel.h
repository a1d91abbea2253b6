// A keyed permutation of [0, n), 1 <= n < 2^31: an unbalanced Feistel network over the least
// 2^b >= n words, walked along its cycle until the image is below n (fewer than two turns on
// average). kgrec_fast/ops/sampling.py says the same in torch's integers, and why rounds change a
// third of the bits by a hash of the others.
//
// The first words of a stream are the keys: one for each round, and one for the relations.
#pragma once

#include <cstdint>

#include "common/philox.h"
#include "common/types.h"

namespace kgrec {

constexpr int kFeistelRounds = 18;
constexpr int kFeistelBlocks = (kFeistelRounds + 1 + kPhiloxWords - 1) / kPhiloxWords;
constexpr int kFeistelWords = kFeistelBlocks * kPhiloxWords;  // keys, and words left over
constexpr uint32_t kFeistelMultiplier0 = 0x7feb352du;
constexpr uint32_t kFeistelMultiplier1 = 0x846ca68bu;

// The bits that a round changes: every third, from bit 0, 1 or 2 on.
KGREC_HOST_DEVICE constexpr uint32_t feistel_target(int round) {
  return round % 3 == 0 ? 0x49249249u : round % 3 == 1 ? 0x92492492u : 0x24924924u;
}

// A hash of 32 bits, keyed in the middle.
KGREC_HOST_DEVICE inline uint32_t feistel_mix(uint32_t word, uint32_t tweak) {
  word ^= word >> 16;
  word *= kFeistelMultiplier0;
  word = (word ^ (word >> 15)) + tweak;
  word *= kFeistelMultiplier1;
  return word ^ (word >> 16);
}

// What makes the permutation that of a relation; other ops have relation 0.
KGREC_HOST_DEVICE inline uint32_t feistel_tweak(const uint32_t* keys, uint32_t relation) {
  return feistel_mix(relation ^ keys[kFeistelRounds], 0);
}

// 2^b - 1.
KGREC_HOST_DEVICE inline uint32_t feistel_domain(uint32_t n) {
  uint32_t domain = n - 1;
  domain |= domain >> 1;
  domain |= domain >> 2;
  domain |= domain >> 4;
  domain |= domain >> 8;
  return domain | (domain >> 16);
}

// The image of x < n, or what it is the image of.
template <bool kInverse>
KGREC_HOST_DEVICE inline uint32_t feistel_permute(
    const uint32_t* keys, uint32_t tweak, uint32_t x, uint32_t n) {
  const uint32_t domain = feistel_domain(n);
  do {
    for (int i = 0; i < kFeistelRounds; ++i) {
      const int round = kInverse ? kFeistelRounds - 1 - i : i;
      const uint32_t target = feistel_target(round);
      x ^= feistel_mix((x & ~target) ^ (keys[round] + tweak), tweak) & domain & target;
    }
  } while (x >= n);
  return x;
}

// floor(rate * n), the product in float64.
KGREC_HOST_DEVICE inline uint32_t floor_share(double rate, int64_t n) {
  return static_cast<uint32_t>(rate * static_cast<double>(n));
}

// The high part of 64 random bits times `free`.
KGREC_HOST_DEVICE inline int64_t random_below(uint32_t high, uint32_t low, int64_t free) {
  const uint64_t f = static_cast<uint64_t>(free);
  return static_cast<int64_t>((high * f + ((low * f) >> 32)) >> 32);
}

}  // namespace kgrec
