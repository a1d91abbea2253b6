// The k best of each row, compiled once for every instruction set.
//
// A first pass over the row finds the maxima of some 2 k groups of items. The k-th highest of them
// is a score that k items have at least, so that few others reach it: a second pass compares all
// scores with it, and collects those that do. Where rows say less (many equal scores, as many best
// items as there are items) the collection is cut down to the k best of it whenever it is full.

namespace {

// A score and its item as one integer: of two, the better one is the higher.
template <class T>
struct Ranked;
template <>
struct Ranked<float> {
  using Bits = uint32_t;
  using Key = uint64_t;
};
template <>
struct Ranked<double> {
  using Bits = uint64_t;
  __extension__ using Key = unsigned __int128;
};
template <class T>
using Key = typename Ranked<T>::Key;

template <class T>
KGREC_INLINE Key<T> key_of(T score, int64_t item) {
  using Bits = typename Ranked<T>::Bits;
  constexpr Bits kSign = Bits(1) << (8 * sizeof(Bits) - 1);
  const Bits bits = bit_cast<Bits>(score + T(0));  // -0 equals 0
  const Bits ordered = (bits & kSign) != 0 ? ~bits : bits | kSign;
  return Key<T>(ordered) << 32 | ~static_cast<uint32_t>(item);
}

template <class T>
KGREC_INLINE int64_t item_of(Key<T> key) {
  return static_cast<uint32_t>(~key);
}

// Bit i where lane i of v is above that of limit, NaN never.
template <class T>
KGREC_INLINE uint64_t lanes_above(Vec<T> v, Vec<T> limit) {
#if defined(__x86_64__) && KGREC_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    return _mm512_cmp_ps_mask(v, limit, _CMP_GT_OQ);
  } else {
    return _mm512_cmp_pd_mask(v, limit, _CMP_GT_OQ);
  }
#elif defined(__x86_64__) && KGREC_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) {
    return unsigned(_mm256_movemask_ps(_mm256_cmp_ps(v, limit, _CMP_GT_OQ)));
  } else {
    return unsigned(_mm256_movemask_pd(_mm256_cmp_pd(v, limit, _CMP_GT_OQ)));
  }
#elif defined(__x86_64__)
  if constexpr (sizeof(T) == 4) {
    return unsigned(_mm_movemask_ps(_mm_cmpgt_ps(v, limit)));
  } else {
    return unsigned(_mm_movemask_pd(_mm_cmpgt_pd(v, limit)));
  }
#else
  uint64_t bits = 0;
  for (int i = 0; i < Simd<T>::W; ++i) {
    bits |= uint64_t(v[i] > limit[i]) << i;
  }
  return bits;
#endif
}

// Finds the k best of one row after the other.
template <class T>
class RowRanker {
 public:
  static constexpr int W = Simd<T>::W;

  RowRanker(int64_t num_items, int64_t k)
      : num_items_(num_items),
        k_(k),
        group_vectors_(std::max<int64_t>(4, (2 * k + W - 1) / W)),
        best_(std::min(2 * k, num_items) + 64) {}

  void rank(const T* row, T* values, int64_t* items) {
    size_ = 0;
    limit_ = lower_bound_of_best(row);
    collect(row);
    int64_t count = size_;
    if (count > k_) {
      std::nth_element(best_.begin(), best_.begin() + (k_ - 1), best_.begin() + count, Better());
      count = k_;
    }
    std::sort(best_.begin(), best_.begin() + count, Better());
    for (int64_t i = 0; i < count; ++i) {
      items[i] = item_of<T>(best_[i]);
      values[i] = row[items[i]];
    }
    // All that is above -inf was collected. The rest is equal, NaN too.
    for (int64_t item = 0; count < k_; ++item) {
      if (!(row[item] > kLowest)) {
        items[count] = item;
        values[count] = kLowest;
        ++count;
      }
    }
  }

 private:
  using Better = std::greater<Key<T>>;
  static constexpr T kLowest = -std::numeric_limits<T>::infinity();

  // A number that at least k scores are above; -inf where none is found at little cost.
  T lower_bound_of_best(const T* row) {
    const int64_t stride = group_vectors_ * W;
    if (num_items_ < 4 * stride) {
      return kLowest;
    }
    maxima_.resize(stride);
    if (group_vectors_ == 4) {
      find_maxima<4>(row);
    } else if (group_vectors_ <= 8) {
      find_maxima<8>(row);
    } else {
      find_maxima<0>(row);
    }
    const auto kth = maxima_.begin() + (k_ - 1);
    std::nth_element(maxima_.begin(), kth, maxima_.end(), std::greater<T>());
    // One step down, since scores that are equal count. Subnormal numbers may be flushed to zero.
    constexpr T kTiny = std::numeric_limits<T>::min();
    return *kth > -kTiny && *kth <= kTiny ? -kTiny : std::nextafter(*kth, kLowest);
  }

  // Of items that are a multiple of the number of groups apart; in registers where there are few.
  template <int kVectors>
  KGREC_INLINE void find_maxima(const T* row) {
    constexpr int kRegisters = kVectors > 0 ? kVectors : 1;
    if constexpr (kVectors > 0) {
      maxima_.resize(kVectors * W);
    }
    const int64_t stride = int64_t(maxima_.size());
    const int64_t end = num_items_ - num_items_ % stride;
    if constexpr (kVectors > 0) {
      Vec<T> top[kRegisters];
      for (int g = 0; g < kRegisters; ++g) {
        top[g] = splat(kLowest);
      }
      for (int64_t i = 0; i < end; i += kRegisters * W) {
        for (int g = 0; g < kRegisters; ++g) {
          top[g] = vmax<T>(load(row + i + g * W), top[g]);  // the latter where the former is NaN
        }
      }
      for (int g = 0; g < kRegisters; ++g) {
        store(maxima_.data() + g * W, top[g]);
      }
    } else {
      std::fill(maxima_.begin(), maxima_.end(), kLowest);
      for (int64_t i = 0; i < end; i += stride) {
        for (int64_t g = 0; g < stride; g += W) {
          T* top = maxima_.data() + g;
          store(top, vmax<T>(load(row + i + g), load(top)));
        }
      }
    }
  }

  void collect(const T* row) {
    int64_t i = 0;
    for (; i + 4 * W <= num_items_; i += 4 * W) {
      const Vec<T> limit = splat(limit_);
      uint64_t above = 0;
      for (int v = 0; v < 4; ++v) {
        above |= lanes_above<T>(load(row + i + v * W), limit) << (v * W);
      }
      for (; above != 0; above &= above - 1) {
        const int64_t item = i + __builtin_ctzll(above);
        add(row[item], item);
      }
    }
    for (; i < num_items_; ++i) {
      if (row[i] > limit_) {
        add(row[i], i);
      }
    }
  }

  KGREC_INLINE void add(T score, int64_t item) {
    best_[size_++] = key_of(score, item);
    if (size_ == int64_t(best_.size())) {
      keep_best();
    }
  }

  // Items to come are higher: with the score of the last of these they lose.
  void keep_best() {
    std::nth_element(best_.begin(), best_.begin() + (k_ - 1), best_.end(), Better());
    size_ = k_;
    limit_ = score_of(best_[k_ - 1]);
  }

  static T score_of(Key<T> key) {
    using Bits = typename Ranked<T>::Bits;
    constexpr Bits kSign = Bits(1) << (8 * sizeof(Bits) - 1);
    const Bits ordered = static_cast<Bits>(key >> 32);
    return bit_cast<T>((ordered & kSign) != 0 ? ordered & ~kSign : ~ordered);
  }

  int64_t num_items_, k_;
  int64_t group_vectors_;
  std::vector<T> maxima_;
  std::vector<Key<T>> best_;
  int64_t size_ = 0;
  T limit_ = kLowest;
};

// The row with -inf for the known items: itself where none is, else a copy, which stays in the
// cache.
template <class T, class Item>
const T* without_known(
    const TopkRowsParams& p, const T* row, int64_t number, std::vector<T>& without) {
  const KnownView& known = p.known;
  const int64_t user = known.users != nullptr ? known.users[number] : number;
  if (known.ptr == nullptr || user < 0 || user >= known.num_users) {
    return row;
  }
  const int64_t begin = std::max<int64_t>(0, known.ptr[user]);
  const int64_t end = std::min(known.num_known, known.ptr[user + 1]);
  if (begin >= end) {
    return row;
  }
  without.assign(row, row + p.num_items);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t item = static_cast<const Item*>(known.items)[i];
    if (item >= 0 && item < p.num_items) {
      without[item] = -std::numeric_limits<T>::infinity();
    }
  }
  return without.data();
}

template <class T, class Item>
void rank_rows(const TopkRowsParams& p, int64_t begin, int64_t end) {
  RowRanker<T> ranker(p.num_items, p.k);
  std::vector<T> without;
  for (int64_t i = begin; i < end; ++i) {
    const T* row = static_cast<const T*>(p.scores) + i * p.num_items;
    ranker.rank(
        without_known<T, Item>(p, row, i, without), static_cast<T*>(p.values) + i * p.k,
        p.items + i * p.k);
  }
}

}  // namespace

void topk_rows_range(const TopkRowsParams& p, int64_t begin, int64_t end) {
  if (p.is_double) {
    p.known.wide ? rank_rows<double, int64_t>(p, begin, end)
                 : rank_rows<double, int32_t>(p, begin, end);
  } else {
    p.known.wide ? rank_rows<float, int64_t>(p, begin, end)
                 : rank_rows<float, int32_t>(p, begin, end);
  }
}
