// A thread an element; the keys of the permutation are drawn once a block.
#pragma once

#include "common/feistel.h"
#include "cuda/device.cuh"
#include "cuda/philox.cuh"
#include "cuda/sampling.h"

namespace kgrec::cuda {

// The keys in registers, by way of shared memory, where each of the first threads draws a block of
// Philox. All threads of the block come here.
struct FeistelKeys {
  uint32_t word[kFeistelRounds + 1];

  KGREC_DEVICE FeistelKeys(const int64_t* rng, int64_t stream) {
    KGREC_SHARED(uint32_t, shared, kFeistelWords);
    const int thread = static_cast<int>(threadIdx.x);
    if (thread < kFeistelBlocks) {
      uint32_t words[kPhiloxWords];
      philox_block(load_draw(rng, stream), static_cast<uint64_t>(thread), words);
#pragma unroll
      for (int i = 0; i < kPhiloxWords; ++i) {
        shared[thread * kPhiloxWords + i] = words[i];
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i <= kFeistelRounds; ++i) {
      word[i] = shared[i];
    }
  }
};

__global__ void __launch_bounds__(kBlockThreads)
    sample_relations_kernel(const SampleRelationsParams p) {
  const FeistelKeys keys(p.rng, p.stream);
  for (int64_t e = thread_of_grid(); e < p.num_edges; e += threads_in_grid()) {
    const int32_t rel = load(p.rel + e);
    const int64_t count = load(p.count + rel);
    const uint32_t image = feistel_permute<false>(
        keys.word, feistel_tweak(keys.word, static_cast<uint32_t>(rel)),
        static_cast<uint32_t>(load(p.rank + e)), static_cast<uint32_t>(count));
    store(p.out + e, static_cast<uint8_t>(image < floor_share(p.rate, count)));
  }
}

__global__ void __launch_bounds__(kBlockThreads) sample_edges_kernel(const SampleEdgesParams p) {
  const FeistelKeys keys(p.rng, p.stream);
  const uint32_t tweak = feistel_tweak(keys.word, 0);
  for (int64_t i = thread_of_grid(); i < p.n; i += threads_in_grid()) {
    const uint32_t image = feistel_permute<false>(
        keys.word, tweak, static_cast<uint32_t>(i), static_cast<uint32_t>(p.n));
    store(p.out + i, static_cast<uint8_t>(image < p.keep));
  }
}

__global__ void __launch_bounds__(kBlockThreads) permutation_kernel(const PermutationParams p) {
  const FeistelKeys keys(p.rng, p.stream);
  const uint32_t tweak = feistel_tweak(keys.word, 0);
  for (int64_t i = thread_of_grid(); i < p.count; i += threads_in_grid()) {
    const uint32_t image = feistel_permute<true>(
        keys.word, tweak, static_cast<uint32_t>(i), static_cast<uint32_t>(p.n));
    store(p.out + i, static_cast<int64_t>(image));
  }
}

// A thread draws a block of four words and writes four bytes at once.
__global__ void __launch_bounds__(kBlockThreads) dropout_mask_kernel(const DropoutMaskParams p) {
  const PhiloxDraw draw = load_draw(p.rng, p.stream);
  const int64_t blocks = (p.n + kPhiloxWords - 1) / kPhiloxWords;
  for (int64_t block = thread_of_grid(); block < blocks; block += threads_in_grid()) {
    uint32_t words[kPhiloxWords];
    philox_block(draw, static_cast<uint64_t>(block), words);
    Vec<uint8_t, kPhiloxWords> kept;
#pragma unroll
    for (int i = 0; i < kPhiloxWords; ++i) {
      kept[i] = keeps(words[i], p.threshold);
    }
    uint8_t* out = p.out + block * kPhiloxWords;
    const int64_t left = p.n - block * kPhiloxWords;
    if (left >= kPhiloxWords) {
      store_vec(out, kept);
    } else {
#pragma unroll
      for (int i = 0; i < kPhiloxWords; ++i) {
        if (i < left) {
          store(out + i, kept[i]);
        }
      }
    }
  }
}

// How many of the ascending gaps [first, last) are not above `place`.
KGREC_DEVICE int64_t gaps_up_to(const int32_t* gap, int64_t first, int64_t last, int64_t place) {
  const int64_t begin = first;
  while (first < last) {
    const int64_t middle = first + (last - first) / 2;
    if (load(gap + middle) <= place) {
      first = middle + 1;
    } else {
      last = middle;
    }
  }
  return first - begin;
}

__global__ void __launch_bounds__(kBlockThreads) negatives_kernel(const NegativesParams p) {
  const PhiloxDraw draw = load_draw(p.rng, p.stream);
  for (int64_t i = thread_of_grid(); i < p.count; i += threads_in_grid()) {
    // Nobody has looked at the users: to wait for that would cost more than all of this.
    int64_t user = load(p.user + i);
    user = user < 0 ? 0 : user >= p.num_users ? p.num_users - 1 : user;
    const int64_t first = load(p.ptr + user), last = load(p.ptr + user + 1);
    uint32_t words[kPhiloxWords];
    philox_block(draw, static_cast<uint64_t>(i), words);
    const int64_t place = random_below(words[0], words[1], p.num_items - (last - first));
    store(p.out + i, place + gaps_up_to(p.gap, first, last, place));
  }
}

template <class Run>
void launches_sample_relations(const SampleRelationsParams& p, Run&& run) {
  run(sample_relations_kernel, grid_for(p.num_edges, kBlockThreads), p);
}

template <class Run>
void launches_sample_edges(const SampleEdgesParams& p, Run&& run) {
  run(sample_edges_kernel, grid_for(p.n, kBlockThreads), p);
}

template <class Run>
void launches_permutation(const PermutationParams& p, Run&& run) {
  run(permutation_kernel, grid_for(p.count, kBlockThreads), p);
}

template <class Run>
void launches_dropout_mask(const DropoutMaskParams& p, Run&& run) {
  run(dropout_mask_kernel, grid_for(p.n, kBlockThreads * kPhiloxWords), p);
}

template <class Run>
void launches_negatives(const NegativesParams& p, Run&& run) {
  run(negatives_kernel, grid_for(p.count, kBlockThreads), p);
}

}  // namespace kgrec::cuda
