// The launch of the row kernel, for the bindings of the ops that are sums.
#pragma once

#include "cuda/aggregate.h"
#include "cuda/binding.h"

namespace kgrec::cuda {

// Launches it, with a workspace for the shares of hubs that is freed in order of the stream.
inline void aggregate(const OnDevice& device, AggregateParams& params, const Tensor& like) {
  Tensor partial =
      make(like, {params.plan.num_chunks, params.width}, accumulate_type(params.dtype));
  Tensor count = make(like, {params.plan.num_chunks}, ScalarType::Int);
  params.partial = partial.mutable_data_ptr();
  params.partial_count = count.mutable_data_ptr<int32_t>();
  device.launch(launch_aggregate, params);
}

}  // namespace kgrec::cuda
