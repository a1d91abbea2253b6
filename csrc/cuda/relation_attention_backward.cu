#include "cuda/relation_attention_backward.cuh"

#include "cuda/on_stream.cuh"

namespace kgrec::cuda {

void launch_attention_backward(const AttentionBackwardParams& params, cudaStream_t stream) {
  launches_attention_backward(params, OnStream{stream});
}

}  // namespace kgrec::cuda
