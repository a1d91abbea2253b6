#include "cuda/aggregate.cuh"

#include "cuda/on_stream.cuh"

namespace kgrec::cuda {

void launch_aggregate(const AggregateParams& params, cudaStream_t stream) {
  launches_aggregate(params, OnStream{stream});
}

void launch_edge_dot(const EdgeDotParams& params, cudaStream_t stream) {
  launches_edge_dot(params, OnStream{stream});
}

}  // namespace kgrec::cuda
