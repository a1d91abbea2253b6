#include "cuda/rationale_scores.cuh"

#include "cuda/on_stream.cuh"

namespace kgrec::cuda {

void launch_rationale_scores(const RationaleParams& params, cudaStream_t stream) {
  launches_rationale_scores(params, OnStream{stream});
}

}  // namespace kgrec::cuda
