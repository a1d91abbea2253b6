// Random words in kernels.
#pragma once

#include "common/philox.h"
#include "cuda/device.cuh"

namespace kgrec::cuda {

// `rng` is (seed, step), which stays on the device.
KGREC_DEVICE PhiloxDraw load_draw(const int64_t* rng, int64_t stream) {
  return philox_draw(load(rng), load(rng + 1), stream);
}

// words[i], for an i that is not known when compiled: registers have no addresses.
KGREC_DEVICE uint32_t pick_word(const uint32_t words[kPhiloxWords], int i) {
  const uint32_t low = (i & 1) != 0 ? words[1] : words[0];
  const uint32_t high = (i & 1) != 0 ? words[3] : words[2];
  return (i & 2) != 0 ? high : low;
}

// The word of one element.
KGREC_DEVICE uint32_t philox_word(const PhiloxDraw& draw, int64_t element) {
  uint32_t words[kPhiloxWords];
  philox_block(draw, static_cast<uint64_t>(element) / kPhiloxWords, words);
  return pick_word(words, static_cast<int>(element % kPhiloxWords));
}

// The words of kSize consecutive elements, the first of which is a multiple of kSize: 2, 4 or 8.
template <int kSize>
KGREC_DEVICE void philox_words(const PhiloxDraw& draw, int64_t first, uint32_t (&words)[kSize]) {
  const uint64_t block = static_cast<uint64_t>(first) / kPhiloxWords;
  if constexpr (kSize == 2) {
    uint32_t four[kPhiloxWords];
    philox_block(draw, block, four);
    const bool upper = first % kPhiloxWords != 0;
    words[0] = upper ? four[2] : four[0];
    words[1] = upper ? four[3] : four[1];
  } else {
#pragma unroll
    for (int i = 0; i < kSize; i += kPhiloxWords) {
      philox_block(draw, block + i / kPhiloxWords, words + i);
    }
  }
}

}  // namespace kgrec::cuda
