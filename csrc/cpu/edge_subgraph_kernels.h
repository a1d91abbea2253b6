// The unmasked edges of an order, block by block, compiled once for every instruction set: some
// count bits, look up many of them or move kept numbers side by side at once.

#if defined(__x86_64__) && KGREC_VECTOR_BYTES == 64
#define KGREC_MOVES_LANES 1
#else
#define KGREC_MOVES_LANES 0
#endif

KGREC_INLINE int64_t count_bits(uint64_t bits) {
#if KGREC_VECTOR_BYTES >= 32 || defined(__POPCNT__)  // g++ defines it for the whole file alone
  return __builtin_popcountll(bits);
#else  // the builtin would call a function
  bits -= bits >> 1 & 0x5555555555555555u;
  bits = (bits & 0x3333333333333333u) + (bits >> 2 & 0x3333333333333333u);
  return int64_t(((bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0fu) * 0x0101010101010101u >> 56);
#endif
}

// How many edges are kept before edge e, which may be one past the last.
KGREC_INLINE int64_t kept_before(const KeptWords& kept, uint64_t e) {
  const uint64_t lower = (uint64_t(1) << (e % kWordEdges)) - 1;
  return kept.before[e / kWordEdges] + count_bits(kept.bits[e / kWordEdges] & lower);
}

#if KGREC_MOVES_LANES
constexpr int64_t kLanes = 16;

// The lanes that `kept` names, side by side at `to`. Returns their number.
KGREC_INLINE int64_t store_kept(int32_t* to, __mmask16 kept, __m512i lanes) {
  const int64_t count = count_bits(kept);
  // No more than these: what comes next may be another thread's.
  const __mmask16 first = __mmask16((1u << count) - 1);
  _mm512_mask_storeu_epi32(to, first, _mm512_maskz_compress_epi32(kept, lanes));
  return count;
}
#endif

// A bit for each of eight bytes, set where the byte is not zero.
KGREC_INLINE uint64_t nonzero_bytes(uint64_t bytes) {
  constexpr uint64_t kLow = 0x7f7f7f7f7f7f7f7fu, kOnes = 0x0101010101010101u;
  const uint64_t ones = (((bytes & kLow) + kLow) | bytes) >> 7 & kOnes;
  return ones * 0x0102040810204080u >> 56;  // 8j + 7(8 - j): one j moves to bit 56 + j
}

// The bits of a block in row order, from its bytes. Returns how many are set.
int64_t mark_rows(const uint8_t* mask, int64_t count, uint64_t* bits) {
  int64_t kept = 0;
  for (int64_t e = 0; e < count; e += kWordEdges) {
    const int64_t stop = std::min(e + kWordEdges, count);
    uint64_t word = 0;
    for (int64_t i = e; i < stop; i += 8) {
      uint64_t bytes = 0;
      if (i + 8 <= stop) {
        std::memcpy(&bytes, mask + i, 8);
      } else {
        std::memcpy(&bytes, mask + i, size_t(stop - i));
      }
      word |= nonzero_bytes(bytes) << (i - e);
    }
    bits[e / kWordEdges] = word;
    kept += count_bits(word);
  }
  return kept;
}

// The bits of a block in column order, whose edges stand at `pos` in row order. Writes where each
// kept one stands among those, and returns how many they are. The look-ups are random, so those of
// an edge are done while the words they need are at hand.
int64_t mark_columns(
    const int32_t* pos, int64_t count, const KeptWords& rows, uint64_t* bits, int32_t* place) {
  constexpr int64_t kTile = 8 * kWordEdges;
  int64_t kept = 0, counted = 0;
  for (int64_t tile = 0; tile < count; tile += kTile) {
    const int64_t tile_end = std::min(tile + kTile, count);
    for (int64_t e = tile; e < tile_end; e += kWordEdges) {
      const int64_t stop = std::min(e + kWordEdges, tile_end);
      uint64_t word = 0;
      int64_t i = e;
#if KGREC_MOVES_LANES
      for (; i + kLanes <= stop; i += kLanes) {
        const __m512i at = _mm512_loadu_si512(pos + i);
        // The halves of a word stand in the order of their bits.
        const __m512i half = _mm512_i32gather_epi32(_mm512_srli_epi32(at, 5), rows.bits, 4);
        const __m512i in_half = _mm512_and_si512(at, _mm512_set1_epi32(31));
        const __m512i bit = _mm512_sllv_epi32(_mm512_set1_epi32(1), in_half);
        const __mmask16 set = _mm512_test_epi32_mask(half, bit);
        word |= uint64_t(set) << (i - e);
        kept += store_kept(place + kept, set, at);
      }
#endif
      for (; i < stop; ++i) {
        const uint64_t at = uint64_t(pos[i]);
        const uint64_t set = rows.bits[at / kWordEdges] >> (at % kWordEdges) & 1;
        word |= set << (i - e);
        place[kept] = int32_t(at);  // the next one overwrites it unless it is kept
        kept += int64_t(set);
      }
      bits[e / kWordEdges] = word;
    }
    for (; counted < kept; ++counted) {
      place[counted] = int32_t(kept_before(rows, uint64_t(place[counted])));
    }
  }
  return kept;
}

// How many are kept before each word, where `before` are kept before the first.
void count_words(const uint64_t* bits, int64_t num_words, int64_t before, int32_t* out) {
  for (int64_t w = 0; w < num_words; ++w) {
    out[w] = int32_t(before);
    before += count_bits(bits[w]);
  }
}

// The numbers of the kept edges of a block, side by side; without numbers their positions, where
// the block starts at edge `first`.
void take_kept(
    const uint64_t* bits, int64_t num_words, const int32_t* numbers, int64_t first, int32_t* to) {
  for (int64_t w = 0; w < num_words; ++w) {
    uint64_t word = bits[w];
    const int64_t e = w * kWordEdges;
#if KGREC_MOVES_LANES
    const __m512i place = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int64_t i = e; i < e + kWordEdges; i += kLanes, word >>= kLanes) {
      const __mmask16 kept = __mmask16(word);
      const __m512i lanes = numbers != nullptr
                                ? _mm512_maskz_loadu_epi32(kept, numbers + i)
                                : _mm512_add_epi32(place, _mm512_set1_epi32(int32_t(first + i)));
      to += store_kept(to, kept, lanes);
    }
#else
    for (; word != 0; word &= word - 1) {
      const int64_t i = e + __builtin_ctzll(word);
      *to++ = numbers != nullptr ? numbers[i] : int32_t(first + i);
    }
#endif
  }
}

// Boundaries between edges, counted in kept ones.
void count_boundaries(const KeptWords& kept, const int64_t* edge, int64_t count, int64_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = kept_before(kept, uint64_t(edge[i]));
  }
}

#undef KGREC_MOVES_LANES
