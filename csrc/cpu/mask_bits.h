// Bits of masks of edges, counted without vectors: rows are short.
#pragma once

#include <cstdint>
#include <cstring>

namespace kgrec::cpu {

constexpr uint64_t kOnes = 0x0101010101010101;

// Eight bytes, 1 for each that is not 0.
inline uint64_t eight_bits(const uint8_t* bytes) {
  uint64_t x;
  std::memcpy(&x, bytes, sizeof(x));
  return ((((x & ~(kOnes << 7)) + ~(kOnes << 7)) | x) >> 7) & kOnes;
}

// How many edges of [begin, end) two masks keep; one that is null keeps all.
inline int64_t count_kept(const uint8_t* mask, const uint8_t* other, int64_t begin, int64_t end) {
  if (mask == nullptr && other == nullptr) {
    return end - begin;
  }
  mask = mask == nullptr ? other : mask;
  other = other == nullptr ? mask : other;
  int64_t count = 0;
  for (; begin + 8 <= end; begin += 8) {
    const uint64_t both = eight_bits(mask + begin) & eight_bits(other + begin);
    count += int64_t((both * kOnes) >> 56);
  }
  for (; begin < end; ++begin) {
    count += (mask[begin] != 0) & (other[begin] != 0);
  }
  return count;
}

}  // namespace kgrec::cpu
