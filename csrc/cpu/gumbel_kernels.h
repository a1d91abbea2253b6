// Gumbel noise by the vector. Included by kernels, inside their namespace, after philox_kernels.h.

#define KGREC_GUMBEL KGREC_INLINE
#include "common/gumbel.h"
#undef KGREC_GUMBEL

struct GumbelLanes {
  // What the compiler cannot look into, it cannot contract with a sum.
  static KGREC_INLINE Vec<float> product(Vec<float> a, Vec<float> b) {
    Vec<float> c = a * b;
#if defined(__x86_64__)
    asm("" : "+v"(c));
#elif defined(__aarch64__)
    asm("" : "+w"(c));
#else
    asm("" : "+m"(c));
#endif
    return c;
  }
  static KGREC_INLINE Vec<float> splat(float a) { return a - Vec<float>{}; }
  static KGREC_INLINE Vec<float> to_float(I32 i) { return __builtin_convertvector(i, Vec<float>); }
  static KGREC_INLINE I32 to_int(Vec<float> x) { return __builtin_convertvector(x, I32); }
  static KGREC_INLINE Vec<float> as_float(I32 i) { return bit_cast<Vec<float>>(i); }
  static KGREC_INLINE I32 as_int(Vec<float> x) { return bit_cast<I32>(x); }
};

// The noise of one vector of words.
KGREC_INLINE Vec<float> gumbel_of_words(const uint32_t* words) {
  U32 word;
  std::memcpy(&word, words, sizeof(word));
  return gumbel<GumbelLanes>(bit_cast<I32>(word >> (32 - kUniformBits)));
}

// The noise of n words, in whole vectors: reads and writes up to a vector more.
inline void gumbel_fill(const uint32_t* words, int64_t n, float* noise) {
  for (int64_t i = 0; i < n; i += Simd<float>::W) {
    store(noise + i, gumbel_of_words(words + i));
  }
}
