#include <tuple>

#include "cuda/aggregate.h"
#include "cuda/relation_grad_binding.h"

namespace kgrec::cuda {
namespace {

// Launches it, with a workspace for the shares of hubs that is freed in order of the stream.
void aggregate(const OnDevice& device, AggregateParams& params, const Tensor& like) {
  Tensor partial =
      make(like, {params.plan.num_chunks, params.width}, accumulate_type(params.dtype));
  Tensor count = make(like, {params.plan.num_chunks}, ScalarType::Int);
  params.partial = partial.mutable_data_ptr();
  params.partial_count = count.mutable_data_ptr<int32_t>();
  device.launch(launch_aggregate, params);
}

Tensor weighted_aggregate(
    const Tensor& x, const std::optional<Tensor>& weight, const std::optional<Tensor>& row_weight,
    const Graph& graph, const std::optional<Tensor>& row_mask,
    const std::optional<Tensor>& col_mask, bool transpose, int64_t out_rows) {
  const OnDevice device(x, "x");
  AggregateParams params;
  params.order = transpose ? column_order(graph, col_mask) : row_order(graph, row_mask);
  params.plan = transpose ? column_plan(graph) : row_plan(graph);
  if (transpose) {
    check_masks(row_mask, col_mask);
  }
  params.order.rel = nullptr;
  params.dtype = dtype_of(x, "x");
  const int64_t sources = transpose ? graph[kRowPtr].numel() - 1 : 0;
  const Tensor source = operand(x, "x", sources, x);
  STD_TORCH_CHECK(
      out_rows >= params.order.num_rows, "out_rows is ", out_rows, ", expected at least ",
      params.order.num_rows);
  params.width = source.size(1);
  params.x = matrix(source);
  std::optional<Tensor> weights;
  if (weight) {
    STD_TORCH_CHECK(
        weight->scalar_type() == accumulate_type(params.dtype),
        "weight is expected in the type that x is added up in");
    check_device(*weight, "weight");
    weights = torch::stable::contiguous(*weight);
    STD_TORCH_CHECK(
        weights->dim() == 1 && weights->numel() == params.order.num_edges, "weight has ",
        weights->numel(), " elements, expected ", params.order.num_edges);
    params.weight = weights->const_data_ptr();
  }
  if (row_weight) {
    const int64_t rows = graph[kRowPtr].numel() - 1;
    (transpose ? params.source_scale : params.row_scale) =
        kept(*row_weight, "row_weight", rows, params.dtype);
  }
  Tensor out = make(x, {out_rows, params.width}, x.scalar_type());
  params.out = out.mutable_data_ptr();
  aggregate(device, params, x);
  device.zero_rows_from(out, params.order.num_rows);
  return out;
}

Tensor edge_dot(
    const Tensor& row_side, const Tensor& col_side, const Graph& graph,
    const std::optional<Tensor>& row_mask, const std::optional<Tensor>&) {
  const OnDevice device(row_side, "row_side");
  EdgeDotParams params;
  params.order = row_order(graph, row_mask);
  params.plan = row_plan(graph);
  params.dtype = dtype_of(row_side, "row_side");
  const Tensor left = operand(row_side, "row_side", params.order.num_rows, row_side);
  const Tensor right = operand(col_side, "col_side", 0, row_side);
  params.width = left.size(1);
  params.row_side = matrix(left);
  params.col_side = matrix(right);
  Tensor out = make(row_side, {params.order.num_edges}, accumulate_type(params.dtype));
  params.out = out.mutable_data_ptr();
  device.launch(launch_edge_dot, params);
  return out;
}

std::tuple<Tensor, Tensor> relation_mean(
    const Tensor& x, const Tensor& relation, const Graph& graph,
    const std::optional<Tensor>& row_mask, const std::optional<Tensor>&) {
  const OnDevice device(x, "x");
  AggregateParams params;
  params.order = row_order(graph, row_mask);
  params.plan = row_plan(graph);
  check_relations(params.order);
  params.dtype = dtype_of(x, "x");
  const Tensor source = operand(x, "x", 0, x);
  const Tensor r = operand(relation, "relation", graph[kSlotPtr].numel() - 1, x);
  params.width = source.size(1);
  params.x = matrix(source);
  params.relation = matrix(r);
  Tensor out = make(x, {params.order.num_rows, params.width}, x.scalar_type());
  Tensor inverse_count = make(x, {params.order.num_rows}, accumulate_type(params.dtype));
  params.out = out.mutable_data_ptr();
  params.inverse_count = inverse_count.mutable_data_ptr();
  aggregate(device, params, x);
  return {out, inverse_count};
}

// The gradient of x is added to `onto`, where there is one.
std::tuple<Tensor, Tensor> gradients(
    const std::optional<Tensor>& onto, const Tensor& grad_out, const Tensor& x,
    const Tensor& relation, const Tensor& inverse_count, const Graph& graph,
    const std::optional<Tensor>& row_mask, const std::optional<Tensor>& col_mask) {
  const OnDevice device(x, "x");
  check_masks(row_mask, col_mask);
  const int64_t num_rows = graph[kRowPtr].numel() - 1;

  // Gradient of x: the same weighted sum over columns, each row's share weighted by its count.
  AggregateParams params;
  params.order = column_order(graph, col_mask);
  params.plan = column_plan(graph);
  check_relations(params.order);
  params.dtype = dtype_of(x, "x");
  const Tensor source = operand(x, "x", params.order.num_rows, x);
  const Tensor r = operand(relation, "relation", graph[kSlotPtr].numel() - 1, x);
  const Tensor g = operand(grad_out, "grad_out", num_rows, x);
  params.width = source.size(1);
  params.x = matrix(g);
  params.relation = matrix(r);
  params.source_scale = kept(inverse_count, "inverse_count", num_rows, params.dtype);
  Tensor grad_x = onto ? *onto : make(x, {source.size(0), params.width}, x.scalar_type());
  if (onto) {
    STD_TORCH_CHECK(grad_x.scalar_type() == x.scalar_type(), "grad_x is not in the dtype of x");
    params.addend = kept(grad_x, "grad_x", source.size(0) * params.width, params.dtype);
    params.addend_rows = params.order.num_rows;
  }
  params.out = grad_x.mutable_data_ptr();
  aggregate(device, params, x);
  if (!onto) {
    device.zero_rows_from(grad_x, params.order.num_rows);
  }

  // Gradient of the relations: dO[h] / count times the sum of x[t], a run at a time.
  RelationGradParams runs;
  runs.row = row_order(graph, row_mask);
  runs.plan = row_plan(graph);
  runs.dtype = params.dtype;
  runs.width = params.width;
  runs.x = matrix(source);
  runs.left = matrix(g);
  runs.left_scale = params.source_scale;
  Tensor grad_relation = make(x, {r.size(0), runs.width}, x.scalar_type());
  SumsMemory memory(device, graph, runs.plan, runs.dtype, runs.width, grad_relation);
  runs.sums = memory.sums();
  device.launch(launch_relation_grad, runs);
  memory.finish();
  return {grad_x, grad_relation};
}

std::tuple<Tensor, Tensor> relation_mean_backward(
    const Tensor& grad_out, const Tensor& x, const Tensor& relation, const Tensor& inverse_count,
    const Graph& graph, const std::optional<Tensor>& row_mask,
    const std::optional<Tensor>& col_mask) {
  return gradients(std::nullopt, grad_out, x, relation, inverse_count, graph, row_mask, col_mask);
}

Tensor relation_mean_backward_onto(
    const Tensor& grad_x, const Tensor& grad_out, const Tensor& x, const Tensor& relation,
    const Tensor& inverse_count, const Graph& graph, const std::optional<Tensor>& row_mask,
    const std::optional<Tensor>& col_mask) {
  return std::get<1>(
      gradients(grad_x, grad_out, x, relation, inverse_count, graph, row_mask, col_mask));
}

}  // namespace
}  // namespace kgrec::cuda

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CUDA, m) {
  m.impl("weighted_aggregate", TORCH_BOX(&kgrec::cuda::weighted_aggregate));
  m.impl("edge_dot", TORCH_BOX(&kgrec::cuda::edge_dot));
  m.impl("relation_mean", TORCH_BOX(&kgrec::cuda::relation_mean));
  m.impl("relation_mean_backward", TORCH_BOX(&kgrec::cuda::relation_mean_backward));
  m.impl("relation_mean_backward_onto", TORCH_BOX(&kgrec::cuda::relation_mean_backward_onto));
}
