// Radix select: passes over digits of the keys, from the highest on. A pass counts the digits of
// the keys that agree with what is known (many blocks), then one block picks the digit of the key
// that comes last. Ties go on over the digits of the ids. A pass that has nothing left to find out
// returns at once, and k never leaves the device.
#pragma once

#include "cuda/block_scan.cuh"
#include "cuda/device.cuh"
#include "cuda/gumbel.cuh"
#include "cuda/philox.cuh"
#include "cuda/selection.h"

namespace kgrec::cuda {

// A thread draws a block of four words and writes it as a vector.
__global__ void __launch_bounds__(kBlockThreads) gumbel_kernel(const GumbelParams p) {
  const PhiloxDraw draw = load_draw(p.rng, p.stream);
  const int64_t groups = (p.n + kGroup - 1) / kGroup;
  for (int64_t group = thread_of_grid(); group < groups; group += threads_in_grid()) {
    uint32_t words[kPhiloxWords];
    philox_block(draw, static_cast<uint64_t>(group), words);
    Vec<float> noise;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      noise[i] = gumbel_of_word(words[i]);
    }
    float* out = p.out + group * kGroup;
    if ((group + 1) * kGroup <= p.n) {
      store_vec(out, noise);
    } else {
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        if (group * kGroup + i < p.n) {
          store(out + i, noise[i]);
        }
      }
    }
  }
}

template <class A>
struct KeyOf {
  using type = uint32_t;
};
template <>
struct KeyOf<double> {
  using type = uint64_t;
};

KGREC_DEVICE uint32_t bits_of(float x) {
  return __float_as_uint(x);
}
KGREC_DEVICE uint64_t bits_of(double x) {
  return static_cast<uint64_t>(__double_as_longlong(x));
}

// Unsigned integers in the order of the numbers, -0 as 0 and all NaN at the top. None is 0.
template <class A>
KGREC_DEVICE typename KeyOf<A>::type ordered(A x) {
  using K = typename KeyOf<A>::type;
  constexpr K kSign = K{1} << (8 * sizeof(K) - 1);
  constexpr K kInfinity =
      sizeof(K) == 4 ? static_cast<K>(0x7f800000u) : static_cast<K>(0x7ff0000000000000u);
  const K b = bits_of(x);
  if ((b & ~kSign) > kInfinity) {
    return ~K{0};
  }
  return (b & kSign) == 0 ? b | kSign : b == kSign ? kSign : ~b;
}

// kGroup elements from p on, of which the first `there` exist; the others are those of T{}.
template <class T>
KGREC_DEVICE void load_group(const T* p, int64_t there, T (&x)[kGroup] KGREC_AT_CALLER) {
  if (there >= kGroup && reinterpret_cast<uintptr_t>(p) % (kGroup * sizeof(T)) == 0) {
    const auto v = load_elements<kGroup>(p KGREC_PASS_CALLER);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      x[i] = v[i];
    }
  } else {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      x[i] = i < there ? load(p + i KGREC_PASS_CALLER) : T{};
    }
  }
}

// Counters of a block, which it adds to those of all. Equal digits side by side wait for one
// another, as much as there are in a warp.
struct Bins {
  unsigned* bins;  // shared [kBins]
  KGREC_DEVICE void clear() const {
    for (int b = static_cast<int>(threadIdx.x); b < kBins; b += kBlockThreads) {
      bins[b] = 0;
    }
    __syncthreads();
  }
  KGREC_DEVICE void add_to(unsigned long long* total) const {
    __syncthreads();
    for (int b = static_cast<int>(threadIdx.x); b < kBins; b += kBlockThreads) {
      if (bins[b] != 0) {
        atomicAdd(total + b, static_cast<unsigned long long>(bins[b]));
      }
    }
  }
};

// The bin of a digit, in the order in which elements are taken: large keys, but small ids first.
KGREC_DEVICE int bin_of(const TopkParams& p, uint64_t key_or_id) {
  const int last = (1 << p.bits) - 1;
  const int digit = static_cast<int>(key_or_id >> p.shift) & last;
  return p.by_id ? digit : last - digit;
}

__global__ void __launch_bounds__(kBlockThreads) topk_clear_kernel(const TopkParams p) {
  const int64_t bins = static_cast<int64_t>(p.passes) * kBins;
  for (int64_t b = thread_of_grid(); b < bins; b += threads_in_grid()) {
    store(p.histograms + b, 0ull);
  }
}

// Keys, those beyond n as 0, and the bins of the first digit.
template <class T>
__global__ void __launch_bounds__(kBlockThreads) topk_keys_kernel(const TopkParams p) {
  using A = acc_t<T>;
  using K = typename KeyOf<A>::type;
  KGREC_SHARED(unsigned, bins, kBins);
  const Bins counted{&bins[0]};
  counted.clear();
  const T* values = static_cast<const T*>(p.values);
  const K flip = p.largest ? K{0} : ~K{0};
  const int64_t groups = (p.n + kGroup - 1) / kGroup;
  for (int64_t group = thread_of_grid(); group < groups; group += threads_in_grid()) {
    const int64_t first = group * kGroup;
    T x[kGroup];
    load_group(values + first, p.n - first, x);
    A sum[kGroup];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      sum[i] = widen(x[i]);
    }
#pragma unroll 1
    for (int s = 0; s < p.num_streams; ++s) {
      uint32_t words[kPhiloxWords];
      philox_block(load_draw(p.rng, p.streams[s]), static_cast<uint64_t>(group), words);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        sum[i] += static_cast<A>(gumbel_of_word(words[i]));
      }
    }
    uint8_t allowed[kGroup] = {1, 1, 1, 1};
    if (p.mask != nullptr) {
      load_group(p.mask + first, p.n - first, allowed);
    }
    K* keys = static_cast<K*>(p.keys) + first;
#pragma unroll
    for (int i = 0; i < kGroup; i += Vec<K>::kSize) {
      Vec<K> v;
#pragma unroll
      for (int j = 0; j < Vec<K>::kSize; ++j) {
        const bool in = allowed[i + j] != 0 && first + i + j < p.n;
        v[j] = in ? (ordered(sum[i + j]) ^ flip) - flip : K{0};
        if (in) {
          atomicAdd(&bins[bin_of(p, v[j])], 1u);
        }
      }
      store_vec(keys + i, v);
    }
  }
  counted.add_to(p.histograms);
}

// The bins of another digit, of the keys that agree with the prefix; or of the ids of the keys that
// equal the bound.
template <class K>
__global__ void __launch_bounds__(kBlockThreads) topk_count_kernel(const TopkParams p) {
  KGREC_SHARED(unsigned, bins, kBins);
  const SelectState state = load(p.states + p.pass - 1);
  if (state.done != 0) {
    return;
  }
  const Bins counted{&bins[0]};
  counted.clear();
  const int above = p.shift + p.bits;
  const int64_t groups = (p.n + kGroup - 1) / kGroup;
  for (int64_t group = thread_of_grid(); group < groups; group += threads_in_grid()) {
    const int64_t first = group * kGroup;
    K keys[kGroup];
    load_group(static_cast<const K*>(p.keys) + first, kGroup, keys);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const uint64_t digits = p.by_id ? static_cast<uint64_t>(first + i) : uint64_t{keys[i]};
      const bool candidate = p.by_id ? keys[i] == static_cast<K>(state.bound) : keys[i] != 0;
      if (candidate && digits >> above == state.prefix) {
        atomicAdd(&bins[bin_of(p, digits)], 1u);
      }
    }
  }
  counted.add_to(p.histograms + static_cast<int64_t>(p.pass) * kBins);
}

// What the bin that holds the last element to be taken says. `left` of its `count` are.
KGREC_DEVICE SelectState
narrowed(const TopkParams& p, SelectState state, int bin, int64_t left, int64_t count) {
  const int digit = p.by_id ? bin : (1 << p.bits) - 1 - bin;
  state.prefix = state.prefix << p.bits | static_cast<uint64_t>(digit);
  state.left = left;
  state.done = left == count;  // all that begin like this are taken: no need to look further
  if (p.by_id) {
    state.cut = static_cast<int64_t>((state.prefix + 1) << p.shift) - 1;
  } else if (state.done != 0) {
    const uint64_t least = state.prefix << p.shift;
    state.bound = least == 0 ? 0 : least - 1;  // 0 is the key of those that may not be taken
  } else if (p.shift == 0) {
    state.bound = state.prefix;
    state.prefix = 0;
  }
  return state;
}

// One block.
__global__ void __launch_bounds__(kBlockThreads) topk_pick_kernel(const TopkParams p) {
  constexpr int kThreadBins = kBins / kBlockThreads;
  KGREC_SHARED(int64_t, warp_sums, kBlockWarps);
  SelectState state{0, 0, ~uint64_t{0}, -1, 0};
  if (p.pass > 0) {
    state = load(p.states + p.pass - 1);
    if (state.done != 0) {
      if (threadIdx.x == 0) {
        store(p.states + p.pass, state);
      }
      return;
    }
  }
  const unsigned long long* histogram = p.histograms + static_cast<int64_t>(p.pass) * kBins;
  const int first = static_cast<int>(threadIdx.x) * kThreadBins;
  int64_t counts[kThreadBins], sum = 0, total = 0;
#pragma unroll
  for (int b = 0; b < kThreadBins; ++b) {
    counts[b] = static_cast<int64_t>(load(histogram + first + b));
    sum += counts[b];
  }
  int64_t before = sum_before(sum, &warp_sums[0], total);
  if (p.pass == 0) {
    state.left =
        p.k >= 0 ? min(p.k, total) : static_cast<int64_t>(p.rate * static_cast<double>(total));
    if (state.left == 0) {
      state.done = 1;
      if (threadIdx.x == 0) {
        store(p.states, state);
      }
      return;
    }
  }
#pragma unroll
  for (int b = 0; b < kThreadBins; ++b) {
    if (before < state.left && state.left <= before + counts[b]) {
      store(p.states + p.pass, narrowed(p, state, first + b, state.left - before, counts[b]));
    }
    before += counts[b];
  }
}

template <class K>
__global__ void __launch_bounds__(kBlockThreads) topk_write_kernel(const TopkParams p) {
  const SelectState state = load(p.states + p.passes - 1);
  const int64_t groups = (p.n + kGroup - 1) / kGroup;
  for (int64_t group = thread_of_grid(); group < groups; group += threads_in_grid()) {
    const int64_t first = group * kGroup;
    K keys[kGroup];
    load_group(static_cast<const K*>(p.keys) + first, kGroup, keys);
    Vec<uint8_t, kGroup> taken;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const bool tie = keys[i] == state.bound && first + i <= state.cut;
      taken[i] = keys[i] > state.bound || tie ? 1 : 0;
    }
    if (first + kGroup <= p.n) {
      store_vec(p.out + first, taken);
    } else {
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        if (first + i < p.n) {
          store(p.out + first + i, taken[i]);
        }
      }
    }
  }
}

template <class Run>
void launches_gumbel(const GumbelParams& p, Run&& run) {
  run(gumbel_kernel, grid_for(p.n, kBlockThreads * kGroup), p);
}

template <class T, class Run>
void launches_topk_typed(TopkParams p, Run&& run) {
  using K = typename KeyOf<acc_t<T>>::type;
  // Counting blocks take many elements each: they write all their bins in the end.
  constexpr int64_t kCountElements = 4 * kBlockThreads * kGroup;
  constexpr int64_t kCountBlocks = 2048;
  Geometry counting = grid_for(p.n, kCountElements);
  counting.blocks = static_cast<unsigned>(std::min<int64_t>(counting.blocks, kCountBlocks));
  const Geometry one = grid_for(1, 1);
  const int of_keys = key_passes(p.dtype), of_ids = id_passes(p.n);
  p.passes = of_keys + of_ids;
  run(topk_clear_kernel, grid_for(int64_t{p.passes} * kBins, kBlockThreads), p);
  int end = key_bits(p.dtype);
  for (p.pass = 0; p.pass < p.passes; ++p.pass) {
    if (p.pass == of_keys) {
      p.by_id = true;
      end = of_ids * kDigitBits;
    }
    p.bits = std::min(end, kDigitBits);
    p.shift = end - p.bits;
    end = p.shift;
    if (p.pass == 0) {
      run(topk_keys_kernel<T>, counting, p);
    } else {
      run(topk_count_kernel<K>, counting, p);
    }
    run(topk_pick_kernel, one, p);
  }
  run(topk_write_kernel<K>, grid_for(p.n, kBlockThreads * kGroup), p);
}

template <class Run>
void launches_topk(const TopkParams& p, Run&& run) {
  if (p.n == 0) {
    return;
  }
  switch (p.dtype) {
    case DType::f32:
      return launches_topk_typed<float>(p, run);
    case DType::f64:
      return launches_topk_typed<double>(p, run);
    case DType::bf16:
      return launches_topk_typed<BFloat16>(p, run);
    case DType::f16:
      return launches_topk_typed<Half>(p, run);
  }
}

}  // namespace kgrec::cuda
