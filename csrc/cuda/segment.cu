#include "cuda/segment.cuh"

#include "cuda/on_stream.cuh"

namespace kgrec::cuda {

void launch_segment_sum(const SegmentParams& params, cudaStream_t stream) {
  launches_segment_sum(params, OnStream{stream});
}

void launch_segment_spread(const SegmentParams& params, cudaStream_t stream) {
  launches_segment_spread(params, OnStream{stream});
}

void launch_segment_softmax(const SegmentParams& params, cudaStream_t stream) {
  launches_segment_softmax(params, OnStream{stream});
}

void launch_segment_softmax_backward(const SegmentParams& params, cudaStream_t stream) {
  launches_segment_softmax_backward(params, OnStream{stream});
}

}  // namespace kgrec::cuda
