#include "cuda/scatter.cuh"

#include "cuda/on_stream.cuh"

namespace kgrec::cuda {

void launch_scatter_pointers(const ScatterPointersParams& params, cudaStream_t stream) {
  launches_scatter_pointers(params, OnStream{stream});
}

}  // namespace kgrec::cuda
