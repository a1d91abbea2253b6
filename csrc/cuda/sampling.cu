#include "cuda/sampling.cuh"

#include "cuda/on_stream.cuh"

namespace kgrec::cuda {

void launch_sample_relations(const SampleRelationsParams& params, cudaStream_t stream) {
  launches_sample_relations(params, OnStream{stream});
}

void launch_sample_edges(const SampleEdgesParams& params, cudaStream_t stream) {
  launches_sample_edges(params, OnStream{stream});
}

void launch_permutation(const PermutationParams& params, cudaStream_t stream) {
  launches_permutation(params, OnStream{stream});
}

void launch_dropout_mask(const DropoutMaskParams& params, cudaStream_t stream) {
  launches_dropout_mask(params, OnStream{stream});
}

void launch_negatives(const NegativesParams& params, cudaStream_t stream) {
  launches_negatives(params, OnStream{stream});
}

}  // namespace kgrec::cuda
