#include "cpu/aggregate.h"
#include "cpu/binding.h"

namespace kgrec::cpu {
namespace {

std::tuple<Tensor, Tensor> relation_mean(
    const Tensor& x, const Tensor& relation, const Graph& graph,
    const std::optional<Tensor>& row_mask, const std::optional<Tensor>&) {
  AggregateParams params;
  params.order = row_order(graph, row_mask);
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
  run_aggregate(params);
  return {out, inverse_count};
}

// The gradient of x is added to `onto`, where there is one.
std::tuple<Tensor, Tensor> gradients(
    const std::optional<Tensor>& onto, const Tensor& grad_out, const Tensor& x,
    const Tensor& relation, const Tensor& inverse_count, const Graph& graph,
    const std::optional<Tensor>& row_mask, const std::optional<Tensor>& col_mask) {
  const int64_t num_rows = graph[kRowPtr].numel() - 1;

  // Gradient of x: the same weighted sum over columns, each row's share weighted by its count.
  AggregateParams params;
  params.order = masked_columns(graph, row_mask, col_mask);
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
  run_aggregate(params);
  if (!onto) {
    zero_rows_from(grad_x, params.order.num_rows);
  }

  // Gradient of the relations: dO[h] / count times the sum of x[t], a run at a time.
  AggregateParams runs;
  runs.order = row_order(graph, row_mask);
  runs.slots = slots(graph);
  runs.dtype = params.dtype;
  runs.width = params.width;
  runs.x = matrix(source);
  runs.left = matrix(g);
  runs.left_scale = params.source_scale;
  Tensor slot_grad = make_zeros(x, runs.slots.num_slots, runs.width, accumulate_type(runs.dtype));
  runs.slot_grad = slot_grad.mutable_data_ptr();
  run_aggregate(runs);

  Tensor grad_relation = make(x, {r.size(0), runs.width}, x.scalar_type());
  run_reduce_slots(runs, grad_relation.mutable_data_ptr());
  zero_rows_from(grad_relation, runs.slots.num_relations);
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
}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CPU, m) {
  m.impl("relation_mean", TORCH_BOX(&kgrec::cpu::relation_mean));
  m.impl("relation_mean_backward", TORCH_BOX(&kgrec::cpu::relation_mean_backward));
  m.impl("relation_mean_backward_onto", TORCH_BOX(&kgrec::cpu::relation_mean_backward_onto));
}
