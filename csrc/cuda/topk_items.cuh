// A block a row. Passes over its scores count their digits, from the highest on, among those that
// agree with the k-th best in the digits before: so the k-th best becomes known, or a range that as
// many scores lie in as are wanted. Where more scores equal it, the same is done with the items of
// these. The chosen ones go to shared memory and are sorted there.
//
// What is chosen is decided by counts alone. Atomics are on integers, and only where the chosen lie
// before the sort depends on their order.
#pragma once

#include <cmath>
#include <type_traits>

#include "cuda/device.cuh"
#include "cuda/topk_items.h"

namespace kgrec::cuda {

constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;
// Blocks on a multiprocessor, at least. Where nothing is said, the compiler spills for one more.
constexpr int kRowsAtOnce = 4;

template <class T>
using key_bits_t = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

// Integers in the order of the scores. -0 equals 0, and NaN -inf.
KGREC_DEVICE uint32_t rank_bits(float x) {
  const uint32_t bits = x != x ? __float_as_uint(-INFINITY) : x == 0 ? 0u : __float_as_uint(x);
  return bits >> 31 != 0 ? ~bits : bits | 1u << 31;
}
KGREC_DEVICE uint64_t rank_bits(double x) {
  const double lowest = -INFINITY;
  const double number = x != x ? lowest : x == 0 ? 0.0 : x;
  const uint64_t bits = static_cast<uint64_t>(__double_as_longlong(number));
  return bits >> 63 != 0 ? ~bits : bits | uint64_t{1} << 63;
}

// The scores of a row, with -inf for known items.
template <class T>
struct RowScores {
  const T* row;
  const uint32_t* known_bits;  // null where none is known

  KGREC_DEVICE T operator()(int64_t item) const {
    if (known_bits != nullptr && ((load(known_bits + item / 32) >> (item % 32)) & 1u) != 0) {
      return T(-INFINITY);
    }
    return load(row + item);
  }
};

// Marks what the user of the row knows; null where that is nothing. Called by the whole block.
template <class Item>
KGREC_DEVICE const uint32_t* mark_known(const TopkRowsParams& p, int64_t row) {
  const KnownView& known = p.known;
  if (known.ptr == nullptr) {
    return nullptr;
  }
  const int64_t user = known.users != nullptr ? load(known.users + row) : row;
  if (user < 0 || user >= known.num_users) {
    return nullptr;
  }
  int64_t begin = load(known.ptr + user), end = load(known.ptr + user + 1);
  begin = begin < 0 ? 0 : begin;
  end = end > known.num_known ? known.num_known : end;
  if (begin >= end) {
    return nullptr;
  }
  const int64_t words = words_of(p.num_items);
  uint32_t* bits = p.known_bits + row * words;
  for (int64_t i = threadIdx.x; i < words; i += blockDim.x) {
    store(bits + i, 0u);
  }
  __syncthreads();
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
    const int64_t item = load(static_cast<const Item*>(known.items) + i);
    if (item >= 0 && item < p.num_items) {
      atomicOr(bits + item / 32, 1u << (item % 32));
    }
  }
  __syncthreads();
  return bits;
}

// Shared memory of a search.
struct Digits {
  unsigned count[kDigits];
  unsigned digit, left, equal;
};

// Keys that agree with prefix in the bits of mask are at the border: `left` of them are wanted, out
// of `equal`. Those above all are.
template <class Bits>
struct Border {
  Bits prefix = 0, mask = 0;
  unsigned left = 0, equal = 0;
};

// The digit, from the highest on, with which `wanted` keys are reached. By one warp.
KGREC_DEVICE void find_digit(Digits* digits, unsigned wanted) {
  constexpr int kEach = kDigits / kWarp;
  const int lane = lane_of_warp();
  const int first = kDigits - 1 - lane * kEach;
  unsigned mine = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    mine += digits->count[first - i];
  }
  unsigned reached = mine;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const unsigned other = __shfl_up_sync(kFullMask, reached, offset);
    reached += lane >= offset ? other : 0;
  }
  unsigned before = reached - mine;
  if (before >= wanted || reached < wanted) {
    return;
  }
  for (int i = 0; i < kEach; ++i) {
    const unsigned count = digits->count[first - i];
    if (before + count >= wanted) {
      digits->digit = static_cast<unsigned>(first - i);
      digits->left = wanted - before;
      digits->equal = count;
      return;
    }
    before += count;
  }
}

// The border of the `wanted` highest keys of the block, of which there are at least as many.
// for_keys(f) calls f(key) for each key of this thread; keys are less than 2^num_bits.
template <class Bits, class F>
KGREC_DEVICE Border<Bits> find_border(Digits* digits, int num_bits, unsigned wanted, F&& for_keys) {
  Border<Bits> border;
  border.left = wanted;
  for (int shift = (num_bits - 1) / kDigitBits * kDigitBits; shift >= 0; shift -= kDigitBits) {
    for (int i = static_cast<int>(threadIdx.x); i < kDigits; i += static_cast<int>(blockDim.x)) {
      digits->count[i] = 0;
    }
    __syncthreads();
    for_keys([&](Bits key) {
      if ((key & border.mask) == border.prefix) {
        atomicAdd(&digits->count[static_cast<int>(key >> shift) & (kDigits - 1)], 1u);
      }
    });
    __syncthreads();
    if (warp_of_block() == 0) {
      find_digit(digits, border.left);
    }
    __syncthreads();
    border.prefix |= Bits(digits->digit) << shift;
    border.mask |= Bits(kDigits - 1) << shift;
    border.left = digits->left;
    border.equal = digits->equal;
    if (border.left == border.equal) {
      break;
    }
  }
  return border;
}

// What is chosen of a row; the better one of two comes first.
template <class Bits>
struct Chosen {
  Bits key;
  uint32_t item;
};

template <class Bits>
KGREC_DEVICE bool comes_before(const Chosen<Bits>& a, const Chosen<Bits>& b) {
  return a.key > b.key || (a.key == b.key && a.item < b.item);
}

// Bitonic, of `size` elements, a power of two. By the whole block.
template <class Bits>
KGREC_DEVICE void sort_chosen(Chosen<Bits>* chosen, int size) {
  for (int run = 2; run <= size; run *= 2) {
    for (int apart = run / 2; apart > 0; apart /= 2) {
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < size / 2; i += static_cast<int>(blockDim.x)) {
        const int low = 2 * i - i % apart, high = low + apart;
        const Chosen<Bits> a = chosen[low], b = chosen[high];
        const bool ascending = (low & run) == 0;
        if (comes_before(b, a) == ascending) {
          chosen[low] = b;
          chosen[high] = a;
        }
      }
    }
  }
  __syncthreads();
}

template <class T, class Item>
__global__ void __launch_bounds__(kBlockThreads, kRowsAtOnce)
    topk_rows_kernel(const TopkRowsParams p) {
  using Bits = key_bits_t<T>;
  KGREC_SHARED(Digits, shared_digits, 1);
  KGREC_SHARED(unsigned, number_chosen, 1);
  KGREC_SHARED(Chosen<Bits>, shared_chosen, kMaxTopk);
  Digits* digits = &shared_digits[0];
  Chosen<Bits>* chosen = &shared_chosen[0];
  const int k = static_cast<int>(p.k);
  int size = 1;
  while (size < k) {
    size *= 2;
  }
  int item_bits = 1;
  while ((p.num_items - 1) >> item_bits != 0) {
    ++item_bits;
  }

  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const RowScores<T> scores{
        static_cast<const T*>(p.scores) + row * p.num_items, mark_known<Item>(p, row)};
    const auto for_items = [&](auto&& f) {
#pragma unroll 4
      for (int64_t item = threadIdx.x; item < p.num_items; item += blockDim.x) {
        f(rank_bits(scores(item)), static_cast<uint32_t>(item));
      }
    };
    const Border<Bits> border = find_border<Bits>(
        digits, 8 * sizeof(Bits), static_cast<unsigned>(k),
        [&](auto&& f) { for_items([&](Bits key, uint32_t) { f(key); }); });
    // Among equal ones the lowest items, which are the highest when counted from the other end.
    const uint32_t last = static_cast<uint32_t>(p.num_items - 1);
    Border<uint32_t> items;
    if (border.left < border.equal) {
      items = find_border<uint32_t>(digits, item_bits, border.left, [&](auto&& f) {
        for_items([&](Bits key, uint32_t item) {
          if (key == border.prefix) {
            f(last - item);
          }
        });
      });
    }

    if (threadIdx.x == 0) {
      number_chosen[0] = 0;
    }
    for (int i = k + static_cast<int>(threadIdx.x); i < size; i += static_cast<int>(blockDim.x)) {
      chosen[i] = {0, ~0u};  // after all that are there
    }
    __syncthreads();
    for_items([&](Bits key, uint32_t item) {
      const Bits part = key & border.mask;
      if (part > border.prefix ||
          (part == border.prefix && ((last - item) & items.mask) >= items.prefix)) {
        const unsigned slot = atomicAdd(&number_chosen[0], 1u);
        if (slot < static_cast<unsigned>(k)) {
          chosen[slot] = {key, item};
        }
      }
    });
    sort_chosen(chosen, size);
    for (int i = static_cast<int>(threadIdx.x); i < k; i += static_cast<int>(blockDim.x)) {
      const Chosen<Bits> best = chosen[i];
      const bool lowest = best.key == rank_bits(T(-INFINITY));
      store(
          static_cast<T*>(p.values) + row * p.k + i,
          lowest ? T(-INFINITY) : load(scores.row + best.item));
      store(p.items + row * p.k + i, static_cast<int64_t>(best.item));
    }
    __syncthreads();
  }
}

template <class Run>
void launches_topk_rows(const TopkRowsParams& p, Run&& run) {
  const auto typed = [&](auto element, auto item) {
    const Geometry geometry = grid_for(p.k > 0 ? p.rows : 0, 1);
    run(topk_rows_kernel<decltype(element), decltype(item)>, geometry, p);
  };
  if (p.dtype == DType::f64) {
    p.known.wide ? typed(double{}, int64_t{}) : typed(double{}, int32_t{});
  } else {
    p.known.wide ? typed(float{}, int64_t{}) : typed(float{}, int32_t{});
  }
}

}  // namespace kgrec::cuda
