// What bindings of the CUDA library share besides common/binding.h.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "common/binding.h"

namespace kgrec {

// The device that OnDevice made current.
inline void check_device(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(
      x.is_cuda() && x.get_device_index() == torch::stable::accelerator::getCurrentDeviceIndex(),
      name, " is expected on the CUDA device of the other operands");
}

}  // namespace kgrec

namespace kgrec::cuda {

// Makes the device of `x` current for as long as it lives, and launches on the caller's stream. The
// first thing in a binding: checks go by the current device.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& x, const char* name) : guard_(index_of(x, name)) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }

  // launch_x(params, stream), and an error where the launch was refused.
  template <class Params>
  void launch(void (*launch_x)(const Params&, cudaStream_t), const Params& params) const {
    launch_x(params, stream_);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  // Rows that no edge can reach.
  void zero_rows_from(Tensor& x, int64_t first) const {
    const int64_t row_bytes = x.size(1) * int64_t(x.element_size());
    const int64_t bytes = (x.size(0) - first) * row_bytes;
    if (bytes > 0) {
      char* data = static_cast<char*>(x.mutable_data_ptr());
      STD_CUDA_CHECK(cudaMemsetAsync(data + first * row_bytes, 0, size_t(bytes), stream_));
    }
  }

 private:
  static int32_t index_of(const Tensor& x, const char* name) {
    STD_TORCH_CHECK(x.is_cuda(), name, " is expected on a CUDA device");
    return x.get_device_index();
  }

  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

inline RowPlan bins(const Graph& graph, size_t begin) {
  const auto list = [&](PlanIndex place, const char* name, int64_t width, int64_t& rows) {
    const Tensor& x = graph[begin + place];
    rows = x.numel() / width;
    return flat<int32_t>(x, name, rows * width);
  };
  RowPlan plan;
  plan.short_row = list(kShortRow, "short_row", 1, plan.num_short);
  plan.long_row = list(kLongRow, "long_row", 1, plan.num_long);
  plan.chunk = list(kChunk, "chunk", 3, plan.num_chunks);
  plan.hub = list(kHub, "hub", 3, plan.num_hubs);
  return plan;
}

// Where the plan begins, which every graph on CUDA has.
inline size_t plan_begin(const Graph& graph, bool columns) {
  check_graph(graph, columns);
  const size_t begin = has_columns(graph) ? kAllTensors : kRowTensors;
  STD_TORCH_CHECK(graph.size() > begin, "graph is expected with the plan of CUDA kernels");
  return begin;
}

inline RowPlan row_plan(const Graph& graph) {
  return bins(graph, plan_begin(graph, false));
}

inline RowPlan column_plan(const Graph& graph) {
  return bins(graph, plan_begin(graph, true) + kRowPlanTensors);
}

inline RunPlan run_plan(const Graph& graph) {
  const size_t begin = plan_begin(graph, false);
  const auto list = [&](PlanIndex place, const char* name) {
    const Tensor& x = graph[begin + place];
    return flat<int32_t>(x, name, x.numel());
  };
  RunPlan plan;
  plan.num_relations = graph[kSlotPtr].numel() - 1;
  plan.num_tiles = graph[begin + kRunTile].size(0) - 1;
  plan.num_runs = graph[begin + kRunPerm].numel();
  plan.num_pieces = graph[begin + kRunPiece].numel() - 1;
  plan.num_sums = graph[begin + kRunSum].size(0);
  plan.place = list(kRunPlace, "run_place");
  plan.tile = list(kRunTile, "run_tile");
  plan.perm = list(kRunPerm, "run_perm");
  plan.piece = list(kRunPiece, "run_piece");
  plan.sum = list(kRunSum, "run_sum");
  plan.workspace_rows =
      std::min(plan.num_runs, std::max<int64_t>(graph[kRowPtr].numel() - 1, kMinWorkspaceRows));
  return plan;
}

}  // namespace kgrec::cuda
