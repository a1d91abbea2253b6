#include "cuda/relation_grad.cuh"

#include "cuda/on_stream.cuh"

namespace kgrec::cuda {

void launch_relation_grad(const RelationGradParams& params, cudaStream_t stream) {
  launches_relation_grad(params, OnStream{stream});
}

}  // namespace kgrec::cuda
