// Selection without sorting, compiled once for every instruction set.

namespace {
#include "cpu/philox_kernels.h"
// noise, which is made of those words
#include "cpu/gumbel_kernels.h"

constexpr int64_t kTile = 512;
// Counters of one digit side by side, so that equal digits do not wait for one another.
constexpr int kCounters = 4;

typedef uint64_t U64 __attribute__((vector_size(KGREC_VECTOR_BYTES)));
typedef float HalfFloats __attribute__((vector_size(KGREC_VECTOR_BYTES / 2)));

template <class A>
using key_t = std::conditional_t<sizeof(A) == 4, uint32_t, uint64_t>;
template <class A>
using Keys = std::conditional_t<sizeof(A) == 4, U32, U64>;

KGREC_INLINE Vec<float> add_noise(Vec<float> v, const float* noise) {
  return v + load(noise);
}
KGREC_INLINE Vec<double> add_noise(Vec<double> v, const float* noise) {
  HalfFloats g;
  std::memcpy(&g, noise, sizeof(g));
  return v + __builtin_convertvector(g, Vec<double>);
}

// Unsigned integers in the order of the numbers, -0 as 0 and all NaN at the top. None is 0.
template <class A>
KGREC_INLINE Keys<A> ordered(Vec<A> v) {
  using K = key_t<A>;
  constexpr K kSign = K{1} << (8 * sizeof(K) - 1);
  constexpr K kInfinity = sizeof(K) == 4 ? K(0x7f800000u) : K(0x7ff0000000000000u);
  Keys<A> b = bit_cast<Keys<A>>(v);
  b = b == kSign ? Keys<A>{} : b;
  const Keys<A> key = (b & kSign) != 0 ? ~b : b | kSign;
  return (b & ~kSign) > kInfinity ? ~Keys<A>{} : key;
}

struct Histogram {
  uint32_t bins[kBins][kCounters] = {};
  // The digits of n keys from `shift` on, which nothing stands above.
  template <class K>
  KGREC_INLINE void count(const K* keys, int64_t n, int shift) {
    int64_t i = 0;
    for (; i + kCounters <= n; i += kCounters) {
      K digit[kCounters];
      for (int c = 0; c < kCounters; ++c) {
        digit[c] = keys[i + c] >> shift;
      }
      for (int c = 0; c < kCounters; ++c) {
        ++bins[digit[c]][c];
      }
    }
    for (; i < n; ++i) {
      ++bins[keys[i] >> shift][0];
    }
  }
  void add_to(int64_t* total) const {
    for (int b = 0; b < kBins; ++b) {
      int64_t sum = 0;
      for (int c = 0; c < kCounters; ++c) {
        sum += bins[b][c];
      }
      if (sum != 0) {
        __atomic_fetch_add(total + b, sum, __ATOMIC_RELAXED);
      }
    }
  }
};

template <class T>
void topk_keys_typed(const TopkParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  using K = key_t<A>;
  constexpr int W = Simd<A>::W;
  const T* values = static_cast<const T*>(p.values);
  K* keys = static_cast<K*>(p.keys);
  const K flip = p.largest ? K{0} : ~K{0};
  PhiloxWords words(kTile);
  alignas(64) float noise[kMaxStreams][kTile + Simd<float>::W];
  Histogram histogram;
  int64_t unset = 0;
  for (int64_t at = begin; at < end; at += kTile) {
    const int64_t stop = std::min(at + kTile, end);
    for (int s = 0; s < p.num_streams; ++s) {
      gumbel_fill(words.fill(p.draws[s], at, stop), stop - at, noise[s]);
    }
    for (int64_t i = at; i < stop; i += W) {
      const bool whole = i + W <= stop;
      Vec<A> v = whole ? load(values + i) : load_first(values + i, int(stop - i));
      for (int s = 0; s < p.num_streams; ++s) {
        v = add_noise(v, noise[s] + (i - at));
      }
      const Keys<A> key = (ordered<A>(v) ^ flip) - flip;
      std::memcpy(keys + i, &key, whole ? sizeof(key) : size_t(stop - i) * sizeof(K));
    }
    if (p.mask != nullptr) {
      int64_t here = 0;
      for (int64_t i = at; i < stop; ++i) {
        keys[i] = p.mask[i] != 0 ? keys[i] : K{0};
        here += p.mask[i] == 0;
      }
      unset += here;
    }
    histogram.count(keys + at, stop - at, p.shift);
  }
  histogram.add_to(p.histogram);
  __atomic_fetch_add(p.unset, unset, __ATOMIC_RELAXED);
}

// One bit for each pair of equal lanes.
#if defined(__x86_64__) && KGREC_VECTOR_BYTES == 64
KGREC_INLINE uint32_t equal_lanes(U32 a, U32 b) {
  return _mm512_cmpeq_epi32_mask(__m512i(a), __m512i(b));
}
KGREC_INLINE uint32_t equal_lanes(U64 a, U64 b) {
  return _mm512_cmpeq_epi64_mask(__m512i(a), __m512i(b));
}
#elif defined(__x86_64__) && KGREC_VECTOR_BYTES == 32
KGREC_INLINE uint32_t equal_lanes(U32 a, U32 b) {
  return uint32_t(_mm256_movemask_ps(__m256(a == b)));
}
KGREC_INLINE uint32_t equal_lanes(U64 a, U64 b) {
  return uint32_t(_mm256_movemask_pd(__m256d(a == b)));
}
#elif defined(__x86_64__)
KGREC_INLINE uint32_t equal_lanes(U32 a, U32 b) {
  return uint32_t(_mm_movemask_ps(__m128(a == b)));
}
KGREC_INLINE uint32_t equal_lanes(U64 a, U64 b) {
  return uint32_t(_mm_movemask_pd(__m128d(a == b)));
}
#else
template <class V>
KGREC_INLINE uint32_t equal_lanes(V a, V b) {
  uint32_t bits = 0;
  for (size_t i = 0; i < sizeof(V) / sizeof(a[0]); ++i) {
    bits |= uint32_t(a[i] == b[i]) << i;
  }
  return bits;
}
#endif

template <class A>
void topk_count_typed(const TopkParams& p, int64_t begin, int64_t end) {
  using K = key_t<A>;
  constexpr int W = Simd<A>::W;
  const K* keys = static_cast<const K*>(p.keys);
  const int shift = p.shift;
  const int above = shift + p.bits;  // less than the bits of a key: the first pass is done
  const K digit = (K{1} << p.bits) - 1;
  const Keys<A> prefix = K(p.prefix) - Keys<A>{};
  Histogram histogram;
  int64_t i = begin;
  for (; i + W <= end; i += W) {
    Keys<A> key;
    std::memcpy(&key, keys + i, sizeof(key));
    for (uint32_t left = equal_lanes(key >> above, prefix); left != 0; left &= left - 1) {
      const int lane = __builtin_ctz(left);
      ++histogram.bins[(keys[i + lane] >> shift) & digit][lane % kCounters];
    }
  }
  for (; i < end; ++i) {
    if (keys[i] >> above == K(p.prefix)) {
      ++histogram.bins[(keys[i] >> shift) & digit][0];
    }
  }
  histogram.add_to(p.histogram);
}

template <class K>
KGREC_INLINE void write_above(const K* keys, uint64_t bound, int64_t n, uint8_t* out) {
  const K low = K(bound);
  for (int64_t i = 0; i < n; ++i) {
    out[i] = keys[i] > low;
  }
}

template <class K>
int64_t position_after(const TopkParams& p, int64_t n, int64_t count) {
  const K* keys = static_cast<const K*>(p.keys);
  const K key = K(p.bound_after);
  int64_t at = 0;
  for (int64_t seen = 0; at < n; at += kTile) {  // whole tiles, and then within one
    int64_t here = 0;
    for (int64_t i = at; i < std::min(at + kTile, n); ++i) {
      here += keys[i] == key;
    }
    if (seen + here >= count) {
      for (; seen < count; ++at) {
        seen += keys[at] == key;
      }
      return at;
    }
    seen += here;
  }
  return n;
}

}  // namespace

void gumbel_range(const GumbelParams& p, int64_t begin, int64_t end) {
  PhiloxWords words(kTile);
  float noise[kTile + Simd<float>::W];
  for (int64_t at = begin; at < end; at += kTile) {
    const int64_t stop = std::min(at + kTile, end);
    gumbel_fill(words.fill(p.draw, at, stop), stop - at, noise);
    std::copy(noise, noise + (stop - at), p.out + at);
  }
}

// Keys, and the histogram of their first digit, of fewer than 2^32 elements.
void topk_keys_range(const TopkParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto t) { topk_keys_typed<decltype(t)>(p, begin, end); });
}

// The histogram of another digit, of fewer than 2^32 elements.
void topk_count_range(const TopkParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f64) {
    topk_count_typed<double>(p, begin, end);
  } else {
    topk_count_typed<float>(p, begin, end);
  }
}

// Where the first `count` of the keys that equal bound_after have been passed, in order.
int64_t topk_position_after(const TopkParams& p, int64_t n, int64_t count) {
  return p.dtype == DType::f64 ? position_after<uint64_t>(p, n, count)
                               : position_after<uint32_t>(p, n, count);
}

void topk_write_range(const TopkParams& p, int64_t begin, int64_t end) {
  const int64_t cut = std::max(begin, std::min(p.cut, end));
  const auto write = [&](const auto* keys) {
    write_above(keys + begin, p.bound_before, cut - begin, p.out + begin);
    write_above(keys + cut, p.bound_after, end - cut, p.out + cut);
  };
  if (p.dtype == DType::f64) {
    write(static_cast<const uint64_t*>(p.keys));
  } else {
    write(static_cast<const uint32_t*>(p.keys));
  }
}

int64_t positions_count(const PositionsParams& p, int64_t begin, int64_t end) {
  int64_t count = 0;
  for (int64_t at = begin; at < end; at += 128) {  // sums of bytes, which vectors of bytes hold
    uint8_t here = 0;
    for (int64_t i = at; i < std::min(at + 128, end); ++i) {
      here = uint8_t(here + (p.mask[i] != 0));
    }
    count += here;
  }
  return count;
}

// Writes the positions of the set bits of a range to the places [at, last) or as many as there are.
void positions_write(
    const PositionsParams& p, int64_t begin, int64_t end, int64_t at, int64_t last) {
  const auto one_by_one = [&](int64_t i, int64_t stop) {
    for (; i < stop && at < last; ++i) {
      if (p.mask[i] != 0) {
        p.out[at++] = i;
      }
    }
  };
  int64_t i = begin;
  for (; i + 8 <= end && at < last; i += 8) {
    uint64_t eight;
    std::memcpy(&eight, p.mask + i, sizeof(eight));
    if (eight == 0) {
      continue;
    }
    if (at + 8 > last) {
      one_by_one(i, i + 8);
      continue;
    }
    for (int j = 0; j < 8; ++j) {  // without branches: each is written, only set bits move on
      p.out[at] = i + j;
      at += p.mask[i + j] != 0;
    }
  }
  one_by_one(i, end);
}
