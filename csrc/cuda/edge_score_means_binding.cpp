#include "cuda/binding.h"
#include "cuda/edge_score_means.h"

namespace kgrec::cuda {
namespace {

Tensor edge_score_means(
    const Tensor& score, const Graph& graph, const std::optional<Tensor>& row_mask,
    int64_t num_items) {
  const OnDevice device(score, "score");
  EdgeScoreMeansParams params;
  params.order = column_order(graph, std::nullopt);
  params.plan = column_plan(graph);
  params.dtype = dtype_of(score, "score");
  STD_TORCH_CHECK(
      params.dtype == DType::f32 || params.dtype == DType::f64,
      "score is expected in float32 or float64");
  STD_TORCH_CHECK(
      num_items >= 0 && num_items <= params.order.num_rows, "num_items is ", num_items,
      ", expected no more than ", params.order.num_rows);
  const Tensor source = torch::stable::contiguous(score);
  STD_TORCH_CHECK(
      source.numel() == params.order.num_edges, "score has ", source.numel(),
      " elements, expected ", params.order.num_edges);
  params.row_mask = mask_of(row_mask, params.order.num_edges);
  params.score = source.const_data_ptr();
  params.num_items = num_items;
  Tensor out = make(score, {num_items}, score.scalar_type());
  Tensor partial = make(score, {params.plan.num_chunks}, score.scalar_type());
  Tensor count = make(score, {params.plan.num_chunks}, ScalarType::Int);
  params.out = out.mutable_data_ptr();
  params.partial = partial.mutable_data_ptr();
  params.partial_count = count.mutable_data_ptr<int32_t>();
  device.launch(launch_edge_score_means, params);
  return out;
}

}  // namespace
}  // namespace kgrec::cuda

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CUDA, m) {
  m.impl("edge_score_means", TORCH_BOX(&kgrec::cuda::edge_score_means));
}
