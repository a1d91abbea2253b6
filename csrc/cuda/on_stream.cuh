// Runs what launches_x of an X.cuh names on a stream of the current device.
#pragma once

#include "cuda/launch.h"

namespace kgrec::cuda {

struct OnStream {
  cudaStream_t stream;

  template <class Params>
  void operator()(void (*kernel)(Params), const Geometry& geometry, const Params& params) const {
    if (geometry.blocks > 0) {
      kernel<<<geometry.blocks, geometry.threads, geometry.shared_bytes, stream>>>(params);
    }
  }
};

}  // namespace kgrec::cuda
