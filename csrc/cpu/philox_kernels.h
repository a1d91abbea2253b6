// Philox words by the vector. Included by kernels, inside their namespace.

// 64-bit lanes, one block a lane. A word is the lower half of its lane; the upper half is whatever
// the widening multiplication left there, and nothing looks at it.
typedef uint64_t PhiloxVec __attribute__((vector_size(KGREC_VECTOR_BYTES)));
constexpr int kPhiloxLanes = KGREC_VECTOR_BYTES / 8;
// Independent chains, which hide the latency of the multiplication; as many as registers hold.
constexpr int kPhiloxChains = KGREC_VECTOR_BYTES == 64 ? 4 : 2;
// philox_fill writes whole groups: its buffer has room for one more than was asked for.
constexpr int64_t kPhiloxSlack = kPhiloxWords * kPhiloxLanes * kPhiloxChains;

KGREC_INLINE PhiloxVec multiply_low_halves(PhiloxVec a, uint32_t b) {
  const PhiloxVec wide = PhiloxVec{} + b;
#if !defined(__SSE2__)
  return (a & 0xffffffffu) * wide;
#elif KGREC_VECTOR_BYTES == 64
  return PhiloxVec(_mm512_maskz_mul_epu32(0xff, __m512i(a), __m512i(wide)));
#elif KGREC_VECTOR_BYTES == 32
  return PhiloxVec(_mm256_mul_epu32(__m256i(a), __m256i(wide)));
#else
  return PhiloxVec(_mm_mul_epu32(__m128i(a), __m128i(wide)));
#endif
}

// Turns four words of every lane into the order of elements: block by block.
KGREC_INLINE void store_blocks(
    PhiloxVec c0, PhiloxVec c1, PhiloxVec c2, PhiloxVec c3, uint32_t* words) {
  const PhiloxVec low = (c0 & 0xffffffffu) | (c1 << 32);
  const PhiloxVec high = (c2 & 0xffffffffu) | (c3 << 32);
#if KGREC_VECTOR_BYTES == 64
  const PhiloxVec first = __builtin_shuffle(low, high, PhiloxVec{0, 8, 1, 9, 2, 10, 3, 11});
  const PhiloxVec second = __builtin_shuffle(low, high, PhiloxVec{4, 12, 5, 13, 6, 14, 7, 15});
#elif KGREC_VECTOR_BYTES == 32
  const PhiloxVec first = __builtin_shuffle(low, high, PhiloxVec{0, 4, 1, 5});
  const PhiloxVec second = __builtin_shuffle(low, high, PhiloxVec{2, 6, 3, 7});
#else
  const PhiloxVec first = __builtin_shuffle(low, high, PhiloxVec{0, 2});
  const PhiloxVec second = __builtin_shuffle(low, high, PhiloxVec{1, 3});
#endif
  std::memcpy(words, &first, sizeof(first));
  std::memcpy(words + 2 * kPhiloxLanes, &second, sizeof(second));
}

// The words of `blocks` blocks from `first` on.
inline void philox_fill(const PhiloxDraw& draw, uint64_t first, int64_t blocks, uint32_t* words) {
  PhiloxVec lane;
  for (int l = 0; l < kPhiloxLanes; ++l) {
    lane[l] = l;
  }
  for (int64_t b = 0; b < blocks; b += kPhiloxLanes * kPhiloxChains) {
    PhiloxVec c0[kPhiloxChains], c1[kPhiloxChains], c2[kPhiloxChains], c3[kPhiloxChains];
#pragma GCC unroll 4
    for (int u = 0; u < kPhiloxChains; ++u) {
      c0[u] = lane + (first + b + u * kPhiloxLanes);
      c1[u] = c0[u] >> 32;
      c2[u] = PhiloxVec{} + draw.step;
      c3[u] = PhiloxVec{} + draw.stream;
    }
    uint32_t k0 = draw.seed_low, k1 = draw.seed_high;
#pragma GCC unroll 1
    for (int round = 0; round < kPhiloxRounds; ++round) {
#pragma GCC unroll 4
      for (int u = 0; u < kPhiloxChains; ++u) {
        const PhiloxVec p0 = multiply_low_halves(c0[u], kPhiloxMultiplier0);
        const PhiloxVec p1 = multiply_low_halves(c2[u], kPhiloxMultiplier1);
        c0[u] = (p1 >> 32) ^ c1[u] ^ k0;
        c1[u] = p1;
        c2[u] = (p0 >> 32) ^ c3[u] ^ k1;
        c3[u] = p0;
      }
      k0 += kPhiloxWeyl0;
      k1 += kPhiloxWeyl1;
    }
#pragma GCC unroll 4
    for (int u = 0; u < kPhiloxChains; ++u) {
      store_blocks(c0[u], c1[u], c2[u], c3[u], words + kPhiloxWords * (b + u * kPhiloxLanes));
    }
  }
}

// The words of the elements [begin, end), wherever in a block they stand.
struct PhiloxWords {
  std::vector<uint32_t> memory;
  explicit PhiloxWords(int64_t most) : memory(most + kPhiloxWords + kPhiloxSlack) {}
  const uint32_t* fill(const PhiloxDraw& draw, int64_t begin, int64_t end) {
    const int64_t first = begin / kPhiloxWords;
    philox_fill(draw, first, (end + kPhiloxWords - 1) / kPhiloxWords - first, memory.data());
    return memory.data() + begin % kPhiloxWords;
  }
};
