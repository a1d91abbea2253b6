#include "cuda/edge_score_means.cuh"

#include "cuda/on_stream.cuh"

namespace kgrec::cuda {

void launch_edge_score_means(const EdgeScoreMeansParams& params, cudaStream_t stream) {
  launches_edge_score_means(params, OnStream{stream});
}

}  // namespace kgrec::cuda
