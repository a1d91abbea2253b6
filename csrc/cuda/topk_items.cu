#include "cuda/topk_items.cuh"

#include "cuda/on_stream.cuh"

namespace kgrec::cuda {

void launch_topk_rows(const TopkRowsParams& params, cudaStream_t stream) {
  launches_topk_rows(params, OnStream{stream});
}

}  // namespace kgrec::cuda
