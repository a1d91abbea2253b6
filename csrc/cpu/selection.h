// Selection without sorting: noise, the k largest, positions of set bits.
#pragma once

#include "common/philox.h"
#include "common/types.h"

namespace kgrec::cpu {

struct GumbelParams {
  PhiloxDraw draw;
  float* out = nullptr;  // [n]
};

constexpr int kMaxStreams = 4;
constexpr int kDigitBits = 11;  // of a key, looked at in one pass
constexpr int kBins = 1 << kDigitBits;

// A key is an unsigned integer of 4 bytes (8 for double) that is larger where a value comes
// earlier; 0 where the mask is not set, and nowhere else.
struct TopkParams {
  DType dtype = DType::f32;
  const void* values = nullptr;   // [n]
  const uint8_t* mask = nullptr;  // [n] or null
  bool largest = true;
  int num_streams = 0;
  PhiloxDraw draws[kMaxStreams];
  void* keys = nullptr;      // [n]
  int64_t* unset = nullptr;  // how many bits of the mask are not set; added to atomically
  // Of one pass: elements of each digit, among those whose higher bits are `prefix`. Threads add
  // to it atomically.
  int64_t* histogram = nullptr;  // [kBins]
  int shift = 0;                 // where the digit stands in a key
  int bits = 0;                  // of the digit
  uint64_t prefix = 0;
  // Set: keys above the bound, which is another one from `cut` on.
  uint64_t bound_before = 0;
  uint64_t bound_after = 0;
  int64_t cut = 0;
  uint8_t* out = nullptr;  // [n]
};

struct PositionsParams {
  const uint8_t* mask = nullptr;
  int64_t* out = nullptr;  // [count]
};

}  // namespace kgrec::cpu
