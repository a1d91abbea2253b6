// The permutation of common/feistel.h by the vector. Included by kernels, inside their namespace.

// Independent chains, which hide the latency of the multiplications: 4 take an eighth longer.
constexpr int kFeistelChains = 6;
constexpr int kFeistelLanes = KGREC_VECTOR_BYTES / 4;
constexpr int kFeistelGroup = kFeistelChains * kFeistelLanes;

KGREC_INLINE U32 feistel_mix_vec(U32 word, U32 tweak) {
  word ^= word >> 16;
  word *= kFeistelMultiplier0;
  word = (word ^ (word >> 15)) + tweak;
  word *= kFeistelMultiplier1;
  return word ^ (word >> 16);
}

KGREC_INLINE U32 load_words(const uint32_t* p) {
  U32 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

// Elements on their way through the network, each with its own n and relation where kEach, else all
// with the first ones'. Each call of `rounds` takes all of them through the rounds once; those that
// have arrived make room for new ones, so that (nearly) full vectors are at work to the end.
template <bool kEach>
struct FeistelPool {
  static constexpr int kSize = 768;
  static_assert(kSize % kFeistelGroup == 0, "whole groups");
  static constexpr int kOthers = kEach ? kSize : 1;
  const uint32_t* keys;
  int count = 0;
  alignas(64) uint32_t x[kSize];
  alignas(64) uint32_t place[kSize];  // where the result goes
  alignas(64) uint32_t n[kOthers];
  alignas(64) uint32_t tweak[kOthers];
  alignas(64) uint32_t bound[kOthers];  // of the caller, who may compare with it

  explicit FeistelPool(const uint32_t* keys_) : keys(keys_) {
    // Whole vectors are worked on: what is in lanes that nobody has filled must be initialised.
    std::fill(x, x + kSize, 0u);
    std::fill(n, n + kOthers, 1u);
    std::fill(tweak, tweak + kOthers, 0u);
  }

  KGREC_INLINE U32 n_of(int i) const { return kEach ? load_words(n + i * kEach) : U32{} + n[0]; }
  KGREC_INLINE U32 tweak_of(int i) const {
    return kEach ? load_words(tweak + i * kEach) : U32{} + tweak[0];
  }

  template <bool kInverse>
  void rounds() {
    for (int at = 0; at < count; at += kFeistelGroup) {
      U32 v[kFeistelChains], domain[kFeistelChains], t[kFeistelChains];
#pragma GCC unroll 6
      for (int u = 0; u < kFeistelChains; ++u) {
        v[u] = load_words(x + at + u * kFeistelLanes);
        t[u] = tweak_of(at + u * kFeistelLanes);
        U32 d = n_of(at + u * kFeistelLanes) - 1;
        d |= d >> 1;
        d |= d >> 2;
        d |= d >> 4;
        d |= d >> 8;
        domain[u] = d | (d >> 16);
      }
#pragma GCC unroll 1
      for (int three = 0; three < kFeistelRounds; three += 3) {
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) {
          const int round = kInverse ? kFeistelRounds - 1 - three - j : three + j;
          const uint32_t bits = feistel_target(kInverse ? 2 - j : j);
          const uint32_t key = keys[round];
#pragma GCC unroll 6
          for (int u = 0; u < kFeistelChains; ++u) {
            v[u] ^= feistel_mix_vec((v[u] & ~bits) ^ (t[u] + key), t[u]) & domain[u] & bits;
          }
        }
      }
#pragma GCC unroll 6
      for (int u = 0; u < kFeistelChains; ++u) {
        std::memcpy(x + at + u * kFeistelLanes, &v[u], sizeof(U32));
      }
    }
  }

  // Keeps the elements that have not arrived, in order.
  void compact() {
    int kept = 0;
#if defined(__x86_64__) && KGREC_VECTOR_BYTES == 64
    for (int at = 0; at < count; at += kFeistelLanes) {
      const __m512i v = __m512i(load_words(x + at));
      const int there = std::min(count - at, kFeistelLanes);
      const __mmask16 left =
          _mm512_mask_cmpge_epu32_mask(__mmask16((1u << there) - 1), v, __m512i(n_of(at)));
      const auto move = [&](uint32_t* array) {
        const __m512i all = __m512i(load_words(array + at));
        _mm512_storeu_si512(array + kept, _mm512_maskz_compress_epi32(left, all));
      };
      move(x);
      move(place);
      if constexpr (kEach) {
        move(n);
        move(tweak);
        move(bound);
      }
      kept += __builtin_popcount(left);
    }
#else
    for (int i = 0; i < count; ++i) {
      x[kept] = x[i];
      place[kept] = place[i];
      const uint32_t limit = n[i * kEach];
      if constexpr (kEach) {
        n[kept] = limit;
        tweak[kept] = tweak[i];
        bound[kept] = bound[i];
      }
      kept += x[kept] >= limit;
    }
#endif
    count = kept;
  }
};

// Takes the elements [begin, end) through the pool: fill(pool, at, element, more) puts `more` of
// them into the places from `at` on; emit(pool) takes what all of them have become, and sees those
// again that had not arrived.
template <bool kInverse, class Pool, class Fill, class Emit>
KGREC_INLINE void feistel_walk(
    Pool& pool, int64_t begin, int64_t end, const Fill& fill, const Emit& emit) {
  while (begin < end || pool.count > 0) {
    const int more = static_cast<int>(std::min<int64_t>(end - begin, Pool::kSize - pool.count));
    fill(pool, pool.count, begin, more);
    for (int i = 0; i < more; ++i) {
      pool.place[pool.count + i] = static_cast<uint32_t>(begin + i);
    }
    begin += more;
    pool.count += more;
    pool.template rounds<kInverse>();
    emit(pool);
    pool.compact();
  }
}
