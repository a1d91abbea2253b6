#include <tuple>

#include "cuda/relation_attention.h"
#include "cuda/relation_grad_binding.h"

namespace kgrec::cuda {
namespace {

// Weights are not kept: the pass backward makes them anew from the log-sum-exp.
std::tuple<Tensor, Tensor, Tensor> relation_attention(
    const Tensor& query, const Tensor& value, const Tensor& relation, const Graph& graph,
    const std::optional<Tensor>& row_mask, const std::optional<Tensor>&, int64_t num_heads, bool,
    const std::optional<Tensor>& zero_edges) {
  const OnDevice device(query, "query");
  AttentionParams params;
  params.row = row_order(graph, row_mask);
  params.plan = row_plan(graph);
  params.dtype = dtype_of(query, "query");
  const Tensor q = operand(query, "query", params.row.num_rows, query);
  const Tensor v = operand(value, "value", 0, query);
  const Tensor r = operand(relation, "relation", graph[kSlotPtr].numel() - 1, query);
  params.width = q.size(1);
  params.num_heads = num_heads;
  check_heads(num_heads, params.width);
  check_relations(params.row);
  params.query = matrix(q);
  params.value = matrix(v);
  params.relation = matrix(r);
  const ScalarType acc = accumulate_type(params.dtype);
  const int64_t num_chunks = params.plan.num_chunks;
  Tensor out = make(query, {params.row.num_rows, params.width}, acc);
  Tensor lse = make(query, {params.row.num_rows, num_heads}, acc);
  Tensor partial = make(query, {num_chunks, params.width}, acc);
  Tensor partial_softmax = make(query, {num_chunks, 2 * num_heads}, acc);
  params.zero_edges = zero_edges_of(zero_edges, params.row, params.dtype);
  params.out = out.mutable_data_ptr();
  params.lse = lse.mutable_data_ptr();
  params.partial = partial.mutable_data_ptr();
  params.partial_softmax = partial_softmax.mutable_data_ptr();
  device.launch(launch_attention, params);
  return {out, lse, make(query, {0, num_heads}, acc)};
}

std::tuple<Tensor, Tensor, Tensor> relation_attention_backward(
    const Tensor& grad_out, const std::optional<Tensor>& grad_lse, const Tensor& query,
    const Tensor& value, const Tensor& relation, const std::optional<Tensor>& out,
    const Tensor& lse, const Tensor&, const Graph& graph, const std::optional<Tensor>& row_mask,
    const std::optional<Tensor>& col_mask, int64_t num_heads,
    const std::optional<Tensor>& zero_edges) {
  const OnDevice device(query, "query");
  check_masks(row_mask, col_mask);
  AttentionBackwardParams params;
  params.row = row_order(graph, row_mask);
  params.plan = row_plan(graph);
  const OrderView col = column_order(graph, col_mask);
  const int64_t num_rows = params.row.num_rows, num_cols = col.num_rows;
  const int64_t num_edges = params.row.num_edges;
  params.dtype = dtype_of(query, "query");
  const ScalarType acc = accumulate_type(params.dtype);
  const Tensor q = operand(query, "query", std::max(num_rows, num_cols), query);
  const Tensor v = operand(value, "value", num_cols, query);
  const Tensor r = operand(relation, "relation", graph[kSlotPtr].numel() - 1, query);
  // It comes from a sum that was rounded to the type of query, whose gradient is of that type.
  const Tensor rounded = torch::stable::to(grad_out, query.scalar_type());
  const Tensor g = operand(rounded, "grad_out", num_rows, query);
  const Tensor gl = grad_lse ? torch::stable::contiguous(*grad_lse)
                             : torch::stable::new_zeros(lse, {num_rows, num_heads});
  params.width = q.size(1);
  params.num_heads = num_heads;
  check_heads(num_heads, params.width);
  check_relations(params.row);
  params.query = matrix(q);
  params.value = matrix(v);
  params.relation = matrix(r);
  params.grad_out = matrix(g);
  params.zero_edges = zero_edges_of(zero_edges, params.row, params.dtype);
  STD_TORCH_CHECK(out.has_value(), "out is expected as the forward pass made it");
  params.out = kept(*out, "out", num_rows * params.width, params.dtype);
  params.lse = kept(lse, "lse", num_rows * num_heads, params.dtype);
  params.grad_lse = kept(gl, "grad_lse", num_rows * num_heads, params.dtype);

  Tensor edge_grad = make(query, {num_edges, num_heads, 2}, acc);
  const bool half = acc != query.scalar_type();
  Tensor grad_query = make(query, {q.size(0), params.width}, query.scalar_type());
  Tensor from_rows = half ? make(query, {num_rows, params.width}, acc) : grad_query;
  Tensor grad_relation = make(query, {r.size(0), params.width}, query.scalar_type());
  {
    Tensor partial = make(query, {params.plan.num_chunks, params.width}, acc);
    SumsMemory memory(device, graph, params.plan, params.dtype, params.width, grad_relation);
    params.sums = memory.sums();
    params.edge_grad = edge_grad.mutable_data_ptr();
    params.grad_query = from_rows.mutable_data_ptr();
    params.partial = partial.mutable_data_ptr();
    device.launch(launch_attention_backward, params);
    memory.finish();
  }

  AttentionTailsParams tails;
  tails.col = col;
  tails.plan = column_plan(graph);
  tails.dtype = params.dtype;
  tails.width = params.width;
  tails.num_heads = num_heads;
  tails.query = params.query;
  tails.relation = params.relation;
  tails.grad_out = params.grad_out;
  tails.edge_grad = params.edge_grad;
  tails.addend = params.grad_query;
  tails.addend_rows = num_rows;
  Tensor grad_value = make(query, {v.size(0), params.width}, query.scalar_type());
  Tensor partial_query = make(query, {tails.plan.num_chunks, params.width}, acc);
  Tensor partial_value = make(query, {tails.plan.num_chunks, params.width}, acc);
  tails.grad_query = grad_query.mutable_data_ptr();
  tails.grad_value = grad_value.mutable_data_ptr();
  tails.partial_query = partial_query.mutable_data_ptr();
  tails.partial_value = partial_value.mutable_data_ptr();
  device.launch(launch_attention_tails, tails);

  // Nodes that are no tail have what they gave as heads, and those beyond have nothing.
  if (half && num_cols < num_rows) {
    Tensor to = torch::stable::narrow(grad_query, 0, num_cols, num_rows - num_cols);
    torch::stable::copy_(to, torch::stable::narrow(from_rows, 0, num_cols, num_rows - num_cols));
  }
  device.zero_rows_from(grad_query, std::max(num_rows, num_cols));
  device.zero_rows_from(grad_value, num_cols);
  return {grad_query, grad_value, grad_relation};
}

}  // namespace
}  // namespace kgrec::cuda

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CUDA, m) {
  m.impl("relation_attention", TORCH_BOX(&kgrec::cuda::relation_attention));
  m.impl("relation_attention_backward", TORCH_BOX(&kgrec::cuda::relation_attention_backward));
}
