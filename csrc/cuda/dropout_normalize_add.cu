#include "cuda/dropout_normalize_add.cuh"

#include "cuda/on_stream.cuh"

namespace kgrec::cuda {

void launch_dropout_normalize_add(const DropoutNormalizeAddParams& params, cudaStream_t stream) {
  launches_dropout_normalize_add(params, OnStream{stream});
}

void launch_dropout_normalize_add_backward(
    const DropoutNormalizeAddBackwardParams& params, cudaStream_t stream) {
  launches_dropout_normalize_add_backward(params, OnStream{stream});
}

}  // namespace kgrec::cuda
