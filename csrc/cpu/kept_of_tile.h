// What a mask keeps of a tile of elements. Included by kernels, inside their namespace.
//
// Where the instruction set closes gaps in passing, kept elements are moved side by side, so that
// work on them comes in fewer vectors. Elsewhere nothing moves: that would cost more than it saves.

constexpr int64_t kTile = 512;
// What is read or written past the last element of a tile, at most.
constexpr int64_t kTileSlack = 16;

#if defined(__x86_64__) && KGREC_VECTOR_BYTES == 64
constexpr int64_t kGroup = 16;  // elements that have a bit each in a number

// f(i, there) for every group of n elements, with a bit in `there` for each that exists.
template <class F>
KGREC_INLINE void each_group(int64_t n, F&& f) {
  int64_t i = 0;
  for (; i + kGroup <= n; i += kGroup) {
    f(i, __mmask16(0xffff));
  }
  if (i < n) {
    f(i, __mmask16((1u << (n - i)) - 1));
  }
}

// The kept ones of a group side by side. Writes whole vectors; returns where the next one goes.
KGREC_INLINE uint32_t* close_gaps(__mmask16 kept, const uint32_t* from, uint32_t* to) {
  const __m512i x = _mm512_maskz_loadu_epi32(kept, from);
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(kept, x));
  return to + _mm_popcnt_u32(kept);
}
KGREC_INLINE uint64_t* close_gaps(__mmask16 kept, const uint64_t* from, uint64_t* to) {
  for (int half = 0; half < 2; ++half, kept = __mmask16(kept >> 8), from += 8) {
    const __mmask8 bits = __mmask8(kept & 0xff);
    const __m512i x = _mm512_maskz_loadu_epi64(bits, from);
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi64(bits, x));
    to += _mm_popcnt_u32(bits);
  }
  return to;
}

// The other way: to their places in a group of vectors, 0 in the others.
KGREC_INLINE void open_gaps(__mmask16 kept, const uint32_t* from, U32 (&to)[1]) {
  to[0] = U32(_mm512_maskz_expandloadu_epi32(kept, from));
}
KGREC_INLINE void open_gaps(__mmask16 kept, const uint64_t* from, U64 (&to)[2]) {
  const __mmask8 low = __mmask8(kept & 0xff);
  to[0] = U64(_mm512_maskz_expandloadu_epi64(low, from));
  to[1] = U64(_mm512_maskz_expandloadu_epi64(__mmask8(kept >> 8), from + _mm_popcnt_u32(low)));
}

// Unsigned integers of the size of A.
template <class A>
KGREC_INLINE auto* as_bits(A* x) {
  using Bits = std::conditional_t<sizeof(A) == 4, uint32_t, uint64_t>;
  return reinterpret_cast<std::conditional_t<std::is_const_v<A>, const Bits, Bits>*>(x);
}

class KeptOfTile {
 public:
  // n elements, all of them where there is no mask.
  KGREC_INLINE KeptOfTile(const uint8_t* mask, int64_t n) : all_(mask == nullptr), n_(n) {
    if (all_) {
      count_ = n;
      return;
    }
    each_group(n, [&](int64_t i, __mmask16 there) {
      const __m128i bytes = _mm_maskz_loadu_epi8(there, mask + i);
      const __mmask16 kept = _mm_test_epi8_mask(bytes, bytes);
      bits_[i / kGroup] = kept;
      count_ += _mm_popcnt_u32(kept);
    });
  }
  // The number of elements to work on.
  KGREC_INLINE int64_t count() const { return count_; }
  // These elements: `from` or, if they had to move, `room`.
  template <class A>
  KGREC_INLINE const A* closed(const A* from, A* room) const {
    if (all_) {
      return from;
    }
    auto* to = as_bits(room);
    for (int64_t i = 0; i < n_; i += kGroup) {
      to = close_gaps(bits_[i / kGroup], as_bits(from) + i, to);
    }
    return room;
  }
  // Puts them back in their places; 0 where nothing was kept.
  template <class K>
  KGREC_INLINE const K* opened(const K* from, K* room) const {
    if (all_) {
      return from;
    }
    for (int64_t i = 0; i < n_; i += kGroup) {
      Keys<K> vectors[kGroup * sizeof(K) / 64];
      open_gaps(bits_[i / kGroup], from, vectors);
      std::memcpy(room + i, vectors, sizeof(vectors));
      from += _mm_popcnt_u32(bits_[i / kGroup]);
    }
    return room;
  }

 private:
  bool all_;
  int64_t n_;
  int64_t count_ = 0;
  __mmask16 bits_[kTile / kGroup];
};
#else
class KeptOfTile {
 public:
  KGREC_INLINE KeptOfTile(const uint8_t* mask, int64_t n) : mask_(mask), n_(n) {}
  KGREC_INLINE int64_t count() const { return n_; }
  template <class A>
  KGREC_INLINE const A* closed(const A* from, A*) const {
    return from;
  }
  template <class K>
  KGREC_INLINE const K* opened(const K* from, K* room) const {
    if (mask_ == nullptr) {
      return from;
    }
    for (int64_t i = 0; i < n_; ++i) {
      room[i] = from[i] & (K{0} - K(mask_[i] != 0));  // without a branch
    }
    return room;
  }

 private:
  const uint8_t* mask_;
  int64_t n_;
};
#endif
