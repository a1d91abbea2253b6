// Launches on a stream. What chooses template instance, grid and block takes a launcher as a
// template argument: this one on a GPU, that of tests/cuda/entry.h in the emulator.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <stdexcept>
#include <string>

namespace kgrec::cuda {

struct StreamLauncher {
  cudaStream_t stream;

  template <class P>
  void operator()(
      void (*kernel)(P), unsigned grid, unsigned block, size_t shared_bytes,
      const P& params) const {
    constexpr size_t kSharedBytes = 48 << 10;  // more must be asked for
    if (shared_bytes > kSharedBytes) {
      check(cudaFuncSetAttribute(
          kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
    }
    kernel<<<grid, block, shared_bytes, stream>>>(params);
    check(cudaGetLastError());
  }

 private:
  static void check(cudaError_t error) {
    if (error != cudaSuccess) {
      throw std::runtime_error(std::string("kernel launch: ") + cudaGetErrorString(error));
    }
  }
};

}  // namespace kgrec::cuda
