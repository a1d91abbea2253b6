#include "cuda/bpr_loss.cuh"

#include "cuda/on_stream.cuh"

namespace kgrec::cuda {

void launch_bpr_loss(const BprLossParams& params, cudaStream_t stream) {
  launches_bpr_loss(params, OnStream{stream});
}

void launch_bpr_loss_backward(const BprLossBackwardParams& params, cudaStream_t stream) {
  launches_bpr_loss_backward(params, OnStream{stream});
}

}  // namespace kgrec::cuda
