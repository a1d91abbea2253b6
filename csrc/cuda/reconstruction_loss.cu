#include "cuda/reconstruction_loss.cuh"

#include "cuda/on_stream.cuh"

namespace kgrec::cuda {

void launch_reconstruction_loss(const ReconstructionLossParams& params, cudaStream_t stream) {
  launches_reconstruction_loss(params, OnStream{stream});
}

void launch_reconstruction_loss_backward(
    const ReconstructionLossBackwardParams& params, cudaStream_t stream) {
  launches_reconstruction_loss_backward(params, OnStream{stream});
}

}  // namespace kgrec::cuda
