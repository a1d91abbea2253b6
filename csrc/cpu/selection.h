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

// Elements whose undecided keys lie side by side; the first one where the key of the first element
// would, so that whole vectors of them can be written.
constexpr int64_t kSelectPart = 1 << 14;
constexpr int64_t kSelectSlack = 16;  // and past the last element
// In `out`, until the bounds are known.
constexpr uint8_t kUndecided = 2;

// Of a part: how many elements are taken whatever the bounds, and how many are undecided.
struct PartCounts {
  int64_t taken = 0;
  int64_t undecided = 0;
};

// A key is an unsigned integer of 4 bytes (8 for double) that is larger where a value comes
// earlier; 0 where the mask is not set, and nowhere else.
struct TopkParams {
  DType dtype = DType::f32;
  int64_t n = 0;
  const void* values = nullptr;    // [num_values]
  const int32_t* index = nullptr;  // [n], which value an element has; null for its own
  int64_t num_values = 0;
  const uint8_t* mask = nullptr;  // [n] or null
  bool largest = true;
  int num_streams = 0;
  PhiloxDraw draws[kMaxStreams];
  // Keys above `high` are taken, keys up to `low` are not, those between are undecided.
  uint64_t low = 0;
  uint64_t high = ~uint64_t{0};
  bool* bad_index = nullptr;     // set where a number in `index` is none of a value
  PartCounts* counts = nullptr;  // [parts]
  void* keys = nullptr;          // [n + kSelectSlack], the undecided ones of each part
  // Of one pass over them: how many have each digit, of those whose bits in `above` are those of
  // `prefix`. Threads add to it atomically.
  int64_t* histogram = nullptr;  // [kBins]
  int shift = 0;                 // where the digit stands in a key
  uint64_t digit = 0;            // its largest value
  uint64_t above = 0;
  uint64_t prefix = 0;
  // Taken of them: keys above the bound, which is another one from the place `cut` in `keys` on.
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
