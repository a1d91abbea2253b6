// The keys that elements are selected by. Included by selection_kernels.h, inside its namespace,
// after gumbel_kernels.h.

typedef uint64_t U64 __attribute__((vector_size(KGREC_VECTOR_BYTES)));
template <class A>
using Keys = std::conditional_t<sizeof(A) == 4, U32, U64>;

// what a mask keeps, which moves vectors of keys too
#include "cpu/kept_of_tile.h"

typedef float HalfFloats __attribute__((vector_size(KGREC_VECTOR_BYTES / 2)));

template <class A>
using key_t = std::conditional_t<sizeof(A) == 4, uint32_t, uint64_t>;

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

// The keys of a tile, and the room that it takes to make them.
template <class T>
class TileKeys {
 public:
  using A = acc_t<T>;
  using K = key_t<A>;
  explicit TileKeys(const TopkParams& p) : p_(p), words_(kTile) {}

  // Of the elements [at, stop).
  const K* of(int64_t at, int64_t stop) {
    const int64_t n = stop - at;
    ask_for(stop);
    const KeptOfTile kept(p_.mask == nullptr ? nullptr : p_.mask + at, n);
    const A* values = values_of(kept, at, n);
    for (int s = 0; s < p_.num_streams; ++s) {
      const uint32_t* words = kept.closed(words_.fill(p_.draws[s], at, stop), kept_words_);
      gumbel_fill(words, kept.count(), noise_);
      for (int64_t i = 0; i < kept.count(); i += W) {
        store(noisy_ + i, add_noise(load(values + i), noise_ + i));
      }
      values = noisy_;
    }
    const K flip = p_.largest ? K{0} : ~K{0};
    for (int64_t i = 0; i < kept.count(); i += W) {
      const Keys<A> key = (ordered<A>(load(values + i)) ^ flip) - flip;
      std::memcpy(closed_keys_ + i, &key, sizeof(key));
    }
    return kept.opened(closed_keys_, keys_);
  }

 private:
  static constexpr int W = Simd<A>::W;
  static constexpr int64_t kRoom = kTile + kTileSlack;

  // What the tile after this one reads: the work on a tile is too long for the caches to run ahead.
  KGREC_INLINE void ask_for(int64_t at) const {
    const auto ask = [&](const auto* array) {
      const char* bytes = reinterpret_cast<const char*>(array + at);
      for (size_t b = 0; b < kTile * sizeof(*array); b += 64) {
        __builtin_prefetch(bytes + b);
      }
    };
    if (p_.mask != nullptr) {
      ask(p_.mask);
    }
    if (p_.index != nullptr) {
      ask(p_.index);
    } else {
      ask(static_cast<const T*>(p_.values));
    }
  }

  KGREC_INLINE const A* values_of(const KeptOfTile& kept, int64_t at, int64_t n) {
    const T* values = static_cast<const T*>(p_.values);
    if (p_.index != nullptr) {
      if (!in_range(p_.index + at, n)) {
        __atomic_store_n(p_.bad_index, true, __ATOMIC_RELAXED);
        return values_;
      }
      const int32_t* index = kept.closed(p_.index + at, kept_index_);
      for (int64_t i = 0; i < kept.count(); ++i) {
        gathered_[i] = values[index[i]];
      }
      for (int64_t i = 0; i < kept.count(); i += W) {
        store(values_ + i, load(gathered_ + i));
      }
      return values_;
    }
    values += at;
    int64_t i = 0;
    for (; i + W <= n; i += W) {
      store(values_ + i, load(values + i));
    }
    if (i < n) {
      store(values_ + i, load_first(values + i, int(n - i)));
    }
    return kept.closed(values_, noisy_);
  }

  KGREC_INLINE bool in_range(const int32_t* index, int64_t n) const {
    const uint32_t limit = uint32_t(std::min<int64_t>(p_.num_values, int64_t{1} << 31));
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; ++i) {
      bad |= uint32_t(index[i]) >= limit;
    }
    return bad == 0;
  }

  const TopkParams& p_;
  PhiloxWords words_;
  alignas(64) A values_[kRoom] = {};
  alignas(64) A noisy_[kRoom] = {};
  alignas(64) float noise_[kRoom] = {};
  alignas(64) K closed_keys_[kRoom] = {};
  alignas(64) K keys_[kRoom] = {};
  alignas(64) T gathered_[kRoom] = {};
  uint32_t kept_words_[kRoom] = {};
  int32_t kept_index_[kRoom] = {};
};
