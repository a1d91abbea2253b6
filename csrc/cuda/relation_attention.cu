#include "cuda/relation_attention.cuh"

#include "cuda/on_stream.cuh"

namespace kgrec::cuda {

void launch_attention(const AttentionParams& params, cudaStream_t stream) {
  launches_attention(params, OnStream{stream});
}

}  // namespace kgrec::cuda
