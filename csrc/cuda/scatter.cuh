// Pointers into a sorted index, a thread for each.
#pragma once

#include "cuda/device.cuh"
#include "cuda/scatter.h"

namespace kgrec::cuda {

__global__ void __launch_bounds__(kBlockThreads)
    scatter_pointers_kernel(const ScatterPointersParams p) {
  for (int64_t row = thread_of_grid(); row <= p.size; row += threads_in_grid()) {
    int64_t low = 0, high = p.rows;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (load(p.sorted + middle) < row) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    store(p.ptr + row, low);
  }
}

template <class Run>
void launches_scatter_pointers(const ScatterPointersParams& p, Run&& run) {
  run(scatter_pointers_kernel, grid_for(p.size + 1, kBlockThreads), p);
}

}  // namespace kgrec::cuda
