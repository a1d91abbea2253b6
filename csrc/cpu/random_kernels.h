// Random bits, compiled once for every instruction set.

namespace {
#include "cpu/philox_kernels.h"
}  // namespace

void random_bits_range(const RandomBitsParams& p, int64_t begin, int64_t end) {
  constexpr int64_t kTile = 1024;
  PhiloxWords words(kTile);
  for (int64_t at = begin; at < end; at += kTile) {
    const int64_t stop = std::min(at + kTile, end);
    const uint32_t* word = words.fill(p.draw, at, stop);
    std::copy(word, word + (stop - at), p.out + at);
  }
}
