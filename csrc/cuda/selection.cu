#include "cuda/selection.cuh"

#include "cuda/on_stream.cuh"
#include "cuda/positions.cuh"

namespace kgrec::cuda {

void launch_gumbel(const GumbelParams& params, cudaStream_t stream) {
  launches_gumbel(params, OnStream{stream});
}

void launch_topk(const TopkParams& params, cudaStream_t stream) {
  launches_topk(params, OnStream{stream});
}

void launch_positions(const PositionsParams& params, cudaStream_t stream) {
  launches_positions(params, OnStream{stream});
}

}  // namespace kgrec::cuda
