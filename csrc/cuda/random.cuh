#pragma once

#include "cuda/device.cuh"
#include "cuda/philox.cuh"
#include "cuda/random.h"

namespace kgrec::cuda {

// A thread draws a block of four words and writes it as two vectors.
__global__ void __launch_bounds__(kBlockThreads) random_bits_kernel(const RandomBitsParams p) {
  const PhiloxDraw draw = load_draw(p.rng, p.stream);
  const int64_t blocks = (p.n + kPhiloxWords - 1) / kPhiloxWords;
  for (int64_t block = thread_of_grid(); block < blocks; block += threads_in_grid()) {
    uint32_t words[kPhiloxWords];
    philox_block(draw, static_cast<uint64_t>(block), words);
    int64_t* out = p.out + block * kPhiloxWords;
    const int64_t left = p.n - block * kPhiloxWords;
    if (left >= kPhiloxWords) {
      store_vec(out, Vec<int64_t>{{words[0], words[1]}});
      store_vec(out + 2, Vec<int64_t>{{words[2], words[3]}});
    } else {
#pragma unroll
      for (int i = 0; i < kPhiloxWords; ++i) {
        if (i < left) {
          store(out + i, static_cast<int64_t>(words[i]));
        }
      }
    }
  }
}

template <class Run>
void launches_random_bits(const RandomBitsParams& p, Run&& run) {
  run(random_bits_kernel, grid_for(p.n, kBlockThreads * kPhiloxWords), p);
}

}  // namespace kgrec::cuda
