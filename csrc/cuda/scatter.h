// Rows in any order become segments: the binding sorts the index stably, and the kernels of
// segment.h go over src by the permutation, every cell adding its elements in their order in src.
#pragma once

#include <cstdint>

#include "cuda/launch.h"

namespace kgrec::cuda {

struct ScatterPointersParams {
  int64_t rows = 0;
  int64_t size = 0;                 // rows of the result
  const int64_t* sorted = nullptr;  // [rows] index in rising order, what is out of range included
  int64_t* ptr = nullptr;           // [size + 1]
};

void launch_scatter_pointers(const ScatterPointersParams& params, cudaStream_t stream);

}  // namespace kgrec::cuda
