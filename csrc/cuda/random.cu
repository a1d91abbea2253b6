#include "cuda/random.cuh"

#include "cuda/on_stream.cuh"

namespace kgrec::cuda {

void launch_random_bits(const RandomBitsParams& params, cudaStream_t stream) {
  launches_random_bits(params, OnStream{stream});
}

}  // namespace kgrec::cuda
