#include "cuda/relation_attention_tails.cuh"

#include "cuda/on_stream.cuh"

namespace kgrec::cuda {

void launch_attention_tails(const AttentionTailsParams& params, cudaStream_t stream) {
  launches_attention_tails(params, OnStream{stream});
}

}  // namespace kgrec::cuda
