#include "cuda/segment.cuh"

#include "entry.h"
#include "segment_args.h"

KGREC_ENTRY(segment_reduce) {
  kgrec::cuda::launches_segment_sum(kgrec::cuda_host::segment_params(args, false), args.launcher);
}

KGREC_ENTRY(segment_spread) {
  kgrec::cuda::launches_segment_spread(
      kgrec::cuda_host::segment_params(args, false), args.launcher);
}

KGREC_ENTRY(segment_softmax) {
  kgrec::cuda::launches_segment_softmax(
      kgrec::cuda_host::segment_params(args, true), args.launcher);
}

KGREC_ENTRY(segment_softmax_backward) {
  kgrec::cuda::launches_segment_softmax_backward(
      kgrec::cuda_host::segment_params(args, true), args.launcher);
}
