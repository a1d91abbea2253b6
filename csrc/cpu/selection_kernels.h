// Selection without sorting, compiled once for every instruction set.

namespace {
#include "cpu/philox_kernels.h"
// noise, which is made of those words
#include "cpu/gumbel_kernels.h"

// keys, which have that noise in them
#include "cpu/selection_keys.h"

// f(i) for the undecided ones of n elements.
template <class F>
KGREC_INLINE void each_undecided(const uint8_t* out, int64_t n, F&& f) {
  constexpr uint64_t kEight = 0x0101010101010101u * kUndecided;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    uint64_t eight;
    std::memcpy(&eight, out + i, sizeof(eight));
    for (eight &= kEight; eight != 0; eight &= eight - 1) {
      f(i + __builtin_ctzll(eight) / 8);
    }
  }
  for (; i < n; ++i) {
    if (out[i] == kUndecided) {
      f(i);
    }
  }
}

// Says in `out` what is clear about the n keys of a tile, and appends the undecided ones to a part.
#if defined(__x86_64__) && KGREC_VECTOR_BYTES == 64
KGREC_INLINE __mmask16 above(const U32 (&keys)[1], uint32_t bound) {
  return _mm512_cmpgt_epu32_mask(__m512i(keys[0]), _mm512_set1_epi32(int32_t(bound)));
}
KGREC_INLINE __mmask16 above(const U64 (&keys)[2], uint64_t bound) {
  const __m512i bounds = _mm512_set1_epi64(int64_t(bound));
  return __mmask16(
      _mm512_cmpgt_epu64_mask(__m512i(keys[0]), bounds) |
      _mm512_cmpgt_epu64_mask(__m512i(keys[1]), bounds) << 8);
}

template <class K>
KGREC_INLINE void split_tile(
    const K* keys, int64_t n, K low, K high, uint8_t* out, K* undecided, PartCounts& counts) {
  K* next = undecided + counts.undecided;
  each_group(n, [&](int64_t i, __mmask16 there) {
    Keys<K> group[kGroup * sizeof(K) / 64];
    std::memcpy(group, keys + i, sizeof(group));
    const __mmask16 taken = above(group, high) & there;
    const __mmask16 open = above(group, low) & there & ~taken;
    const __m128i bytes = _mm_mask_set1_epi8(_mm_maskz_set1_epi8(taken, 1), open, kUndecided);
    _mm_mask_storeu_epi8(out + i, there, bytes);
    counts.taken += _mm_popcnt_u32(taken);
    next = close_gaps(open, keys + i, next);
  });
  counts.undecided = next - undecided;
}
#else
template <class K>
KGREC_INLINE void split_tile(
    const K* keys, int64_t n, K low, K high, uint8_t* out, K* undecided, PartCounts& counts) {
  int32_t taken = 0;
  for (int64_t i = 0; i < n; ++i) {
    out[i] = keys[i] > high ? 1 : keys[i] > low ? kUndecided : 0;
    taken += keys[i] > high;
  }
  counts.taken += taken;
  each_undecided(out, n, [&](int64_t i) { undecided[counts.undecided++] = keys[i]; });
}
#endif

template <class T>
void topk_split_typed(const TopkParams& p, int64_t first_part, int64_t last_part) {
  using K = typename TileKeys<T>::K;
  TileKeys<T> tile(p);
  for (int64_t part = first_part; part < last_part; ++part) {
    const int64_t begin = part * kSelectPart, end = std::min(begin + kSelectPart, p.n);
    PartCounts counts;
    for (int64_t at = begin; at < end; at += kTile) {
      const int64_t stop = std::min(at + kTile, end);
      split_tile(
          tile.of(at, stop), stop - at, K(p.low), K(p.high), p.out + at,
          static_cast<K*>(p.keys) + begin, counts);
    }
    p.counts[part] = counts;
  }
}

// Counters of one digit side by side, so that equal digits do not wait for one another.
constexpr int kCounters = 4;

struct Histogram {
  uint32_t bins[kBins][kCounters] = {};
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
void topk_count_typed(const TopkParams& p, int64_t first_part, int64_t last_part) {
  using K = key_t<A>;
  constexpr int W = Simd<A>::W;
  const int shift = p.shift;
  const K digit = K(p.digit);
  const Keys<A> above = K(p.above) - Keys<A>{}, prefix = K(p.prefix) - Keys<A>{};
  Histogram histogram;
  for (int64_t part = first_part; part < last_part; ++part) {
    const K* keys = static_cast<const K*>(p.keys) + part * kSelectPart;
    const int64_t n = p.counts[part].undecided;
    int64_t i = 0;
    for (; i + W <= n; i += W) {
      Keys<A> key;
      std::memcpy(&key, keys + i, sizeof(key));
      for (uint32_t left = equal_lanes(key & above, prefix); left != 0; left &= left - 1) {
        const int lane = __builtin_ctz(left);
        ++histogram.bins[(keys[i + lane] >> shift) & digit][lane % kCounters];
      }
    }
    for (; i < n; ++i) {
      if ((keys[i] & K(p.above)) == K(p.prefix)) {
        ++histogram.bins[(keys[i] >> shift) & digit][0];
      }
    }
  }
  histogram.add_to(p.histogram);
}

template <class K>
int64_t position_after(const TopkParams& p, int64_t parts, int64_t count) {
  const K key = K(p.bound_after);
  for (int64_t part = 0, seen = 0; part < parts; ++part) {  // whole parts, and then within one
    const K* keys = static_cast<const K*>(p.keys) + part * kSelectPart;
    int64_t here = 0;
    for (int64_t i = 0; i < p.counts[part].undecided; ++i) {
      here += keys[i] == key;
    }
    if (seen + here >= count) {
      int64_t at = 0;
      for (; seen < count; ++at) {
        seen += keys[at] == key;
      }
      return part * kSelectPart + at;
    }
    seen += here;
  }
  return p.n;
}

// Takes the undecided ones of n elements whose keys, which stand side by side, are above the bound.
template <class K>
KGREC_INLINE void decide(const K* keys, int64_t n, K bound, uint8_t* out) {
#if defined(__x86_64__) && KGREC_VECTOR_BYTES == 64
  const __m128i mark = _mm_set1_epi8(kUndecided);
  each_group(n, [&](int64_t i, __mmask16 there) {
    const __m128i bytes = _mm_maskz_loadu_epi8(there, out + i);
    const __mmask16 open = _mm_test_epi8_mask(bytes, mark);
    Keys<K> group[kGroup * sizeof(K) / 64];
    open_gaps(open, keys, group);
    const __m128i ones = _mm_maskz_set1_epi8(above(group, bound), 1);
    _mm_mask_storeu_epi8(out + i, there, _mm_mask_mov_epi8(bytes, open, ones));
    keys += _mm_popcnt_u32(open);
  });
#else
  each_undecided(out, n, [&](int64_t i) { out[i] = *keys++ > bound; });
#endif
}

template <class K>
void topk_write_typed(const TopkParams& p, int64_t first_part, int64_t last_part) {
  for (int64_t part = first_part; part < last_part; ++part) {
    const int64_t begin = part * kSelectPart, n = std::min(kSelectPart, p.n - begin);
    const K* keys = static_cast<const K*>(p.keys) + begin;
    uint8_t* out = p.out + begin;
    const int64_t before = p.cut - begin;  // how many of these keys
    if (before <= 0 || before >= p.counts[part].undecided) {
      decide(keys, n, K(before <= 0 ? p.bound_after : p.bound_before), out);
      continue;
    }
    int64_t at = 0;
    each_undecided(out, n, [&](int64_t i) {
      out[i] = keys[at] > K(at < before ? p.bound_before : p.bound_after);
      ++at;
    });
  }
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

// The keys of at most a tile of elements, without those that the mask drops. Returns their number.
int64_t topk_sample(const TopkParams& p, int64_t begin, int64_t end, uint64_t* sample) {
  int64_t count = 0;
  for_dtype(p.dtype, [&](auto t) {
    TileKeys<decltype(t)> tile(p);
    const auto* keys = tile.of(begin, end);
    for (int64_t i = 0; i < end - begin; ++i) {
      sample[count] = keys[i];
      count += keys[i] != 0;
    }
  });
  return count;
}

// Which elements of some parts are taken, and which are undecided, by p.low and p.high.
void topk_split_parts(const TopkParams& p, int64_t first, int64_t last) {
  for_dtype(p.dtype, [&](auto t) { topk_split_typed<decltype(t)>(p, first, last); });
}

// The histogram of a digit, over parts with fewer than 2^32 elements.
void topk_count_parts(const TopkParams& p, int64_t first, int64_t last) {
  if (p.dtype == DType::f64) {
    topk_count_typed<double>(p, first, last);
  } else {
    topk_count_typed<float>(p, first, last);
  }
}

// Where in `keys` the first `count` of those that equal bound_after have been passed, in order.
int64_t topk_position_after(const TopkParams& p, int64_t parts, int64_t count) {
  return p.dtype == DType::f64 ? position_after<uint64_t>(p, parts, count)
                               : position_after<uint32_t>(p, parts, count);
}

// Decides about the undecided ones.
void topk_write_parts(const TopkParams& p, int64_t first, int64_t last) {
  if (p.dtype == DType::f64) {
    topk_write_typed<uint64_t>(p, first, last);
  } else {
    topk_write_typed<uint32_t>(p, first, last);
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
