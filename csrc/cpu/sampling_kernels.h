// Sampling by counters, compiled once for every instruction set.

namespace {
#include "cpu/philox_kernels.h"
// after the vectors that it needs
#include "cpu/feistel_kernels.h"

constexpr int64_t kTile = 1024;  // elements whose random words are drawn at once

// x = element, all with the same n.
template <bool kInverse, class Emit>
KGREC_INLINE void walk_elements(
    const uint32_t* keys, uint32_t n, int64_t begin, int64_t end, const Emit& emit) {
  FeistelPool<false> pool(keys);
  pool.n[0] = n;
  pool.tweak[0] = feistel_tweak(keys, 0);
  const auto fill = [](auto& q, int at, int64_t element, int more) {
    for (int i = 0; i < more; ++i) {
      q.x[at + i] = static_cast<uint32_t>(element + i);
    }
  };
  feistel_walk<kInverse>(pool, begin, end, fill, emit);
}
}  // namespace

void sample_relations_range(const SampleRelationsParams& p, int64_t begin, int64_t end) {
  FeistelPool<true> pool(p.keys);
  const auto fill = [&](auto& q, int at, int64_t edge, int more) {
    for (int i = 0; i < more; ++i) {
      const RelationShare& share = p.share[p.rel[edge + i]];
      q.n[at + i] = share.n;
      q.tweak[at + i] = share.tweak;
      q.bound[at + i] = share.keep;
    }
    std::memcpy(q.x + at, p.rank + edge, more * sizeof(uint32_t));
  };
  feistel_walk<false>(pool, begin, end, fill, [&](const auto& q) {
    for (int i = 0; i < q.count; ++i) {
      p.out[q.place[i]] = q.x[i] < q.bound[i];
    }
  });
}

void sample_edges_range(const SampleEdgesParams& p, int64_t begin, int64_t end) {
  walk_elements<false>(p.keys, p.n, begin, end, [&](const auto& q) {
    for (int i = 0; i < q.count; ++i) {
      p.out[q.place[i]] = q.x[i] < p.keep;
    }
  });
}

void permutation_range(const PermutationParams& p, int64_t begin, int64_t end) {
  walk_elements<true>(p.keys, p.n, begin, end, [&](const auto& q) {
    for (int i = 0; i < q.count; ++i) {
      p.out[q.place[i]] = q.x[i];
    }
  });
}

void dropout_mask_range(const DropoutMaskParams& p, int64_t begin, int64_t end) {
  PhiloxWords words(kTile);
  for (int64_t at = begin; at < end; at += kTile) {
    const int64_t stop = std::min(at + kTile, end);
    const uint32_t* word = words.fill(p.draw, at, stop);
    for (int64_t i = 0; i < stop - at; ++i) {
      p.out[at + i] = keeps(word[i], p.threshold);
    }
  }
}

void negatives_range(const NegativesParams& p, int64_t begin, int64_t end) {
  PhiloxWords words(kTile);
  constexpr int64_t kStep = kTile / kPhiloxWords;  // a block each
  for (int64_t at = begin; at < end; at += kStep) {
    const int64_t stop = std::min(at + kStep, end);
    const uint32_t* word = words.fill(p.draw, at * kPhiloxWords, stop * kPhiloxWords);
    for (int64_t i = at; i < stop; ++i, word += kPhiloxWords) {
      const int32_t* first = p.gap + p.ptr[p.user[i]];
      const int32_t* last = p.gap + p.ptr[p.user[i] + 1];
      const int64_t place = random_below(word[0], word[1], p.num_items - (last - first));
      p.out[i] = place + (std::upper_bound(first, last, place) - first);
    }
  }
}
