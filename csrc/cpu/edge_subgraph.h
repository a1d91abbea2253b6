// The unmasked edges of an order: a bit each, and how many there are before each word of 64.
#pragma once

#include <cstdint>

namespace kgrec::cpu {

constexpr int64_t kWordEdges = 64;
constexpr int64_t kBlockWords = 256;  // what a thread takes at once

struct KeptWords {
  uint64_t* bits = nullptr;
  int32_t* before = nullptr;
};

}  // namespace kgrec::cpu
