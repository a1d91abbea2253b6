// Positions of set bits: counts by tile, their sums, and then each tile knows where to write.
#pragma once

#include "cuda/block_scan.cuh"
#include "cuda/device.cuh"
#include "cuda/selection.h"

namespace kgrec::cuda {

// The bytes of a thread in a tile; those beyond n are 0.
KGREC_DEVICE Vec<uint8_t> load_bits(const PositionsParams& p, int64_t first) {
  if (first + kThreadBits <= p.n &&
      reinterpret_cast<uintptr_t>(p.mask + first) % kVectorBytes == 0) {
    return load_vec(p.mask + first);
  }
  Vec<uint8_t> bits;
#pragma unroll
  for (int i = 0; i < kThreadBits; ++i) {
    bits[i] = first + i < p.n ? load(p.mask + first + i) : uint8_t{0};
  }
  return bits;
}

KGREC_DEVICE int count_bits(const Vec<uint8_t>& bits) {
  int count = 0;
#pragma unroll
  for (int i = 0; i < kThreadBits; ++i) {
    count += bits[i] != 0 ? 1 : 0;
  }
  return count;
}

__global__ void __launch_bounds__(kBlockThreads) positions_count_kernel(const PositionsParams p) {
  KGREC_SHARED(int, warp_sums, kBlockWarps);
  for (int64_t tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    const int64_t first = tile * kTileBits + static_cast<int64_t>(threadIdx.x) * kThreadBits;
    int total = 0;
    sum_before(count_bits(load_bits(p, first)), &warp_sums[0], total);
    if (threadIdx.x == 0) {
      store(p.first + tile, static_cast<int64_t>(total));
    }
  }
}

// One block: counts become sums over the tiles before; the last is that over all.
__global__ void __launch_bounds__(kBlockThreads) positions_sum_kernel(const PositionsParams p) {
  KGREC_SHARED(int64_t, warp_sums, kBlockWarps);
  int64_t so_far = 0;
  for (int64_t begin = 0; begin <= p.tiles; begin += kBlockThreads) {
    const int64_t tile = begin + threadIdx.x;
    const int64_t count = tile < p.tiles ? load(p.first + tile) : 0;
    int64_t total = 0;
    const int64_t before = sum_before(count, &warp_sums[0], total);
    if (tile <= p.tiles) {
      store(p.first + tile, so_far + before);
    }
    so_far += total;
  }
}

__global__ void __launch_bounds__(kBlockThreads) positions_write_kernel(const PositionsParams p) {
  KGREC_SHARED(int, warp_sums, kBlockWarps);
  for (int64_t tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    int64_t place = load(p.first + tile);
    if (place >= p.count) {
      break;  // and so it is for all later tiles
    }
    const int64_t first = tile * kTileBits + static_cast<int64_t>(threadIdx.x) * kThreadBits;
    const Vec<uint8_t> bits = load_bits(p, first);
    int total = 0;
    place += sum_before(count_bits(bits), &warp_sums[0], total);
#pragma unroll
    for (int i = 0; i < kThreadBits; ++i) {
      if (bits[i] != 0) {
        if (place < p.count) {
          store(p.out + place, first + i);
        }
        ++place;
      }
    }
  }
  const int64_t found = load(p.first + p.tiles);
  for (int64_t i = found + thread_of_grid(); i < p.count; i += threads_in_grid()) {
    store(p.out + i, int64_t{-1});
  }
}

template <class Run>
void launches_positions(const PositionsParams& p, Run&& run) {
  if (p.count == 0) {
    return;
  }
  run(positions_count_kernel, grid_for(p.tiles, 1), p);
  run(positions_sum_kernel, grid_for(1, 1), p);
  // A block also where there is no bit: the places that are left are filled.
  run(positions_write_kernel, grid_for(std::max<int64_t>(p.tiles, 1), 1), p);
}

}  // namespace kgrec::cuda
