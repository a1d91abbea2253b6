#include "cuda/contrast_loss.cuh"

#include "cuda/on_stream.cuh"

namespace kgrec::cuda {

void launch_contrast_loss(const ContrastLossParams& params, cudaStream_t stream) {
  launches_contrast_loss(params, OnStream{stream});
}

void launch_contrast_loss_backward(const ContrastLossBackwardParams& params, cudaStream_t stream) {
  launches_contrast_loss_backward(params, OnStream{stream});
}

}  // namespace kgrec::cuda
