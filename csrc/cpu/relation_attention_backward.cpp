#include "cpu/aggregate.h"
#include "cpu/binding.h"
#include "cpu/dispatch.h"
#include "cpu/relation_attention.h"

#define KGREC_KERNELS "cpu/relation_attention_backward_kernels.h"
#include "cpu/foreach_isa.h"

namespace kgrec::cpu {
namespace {

// Rows of grad_query that are no column: only the row pass reaches them.
void copy_rows_from(Tensor target, Tensor source, int64_t first) {
  Tensor to = torch::stable::narrow(target, 0, first, target.size(0) - first);
  const Tensor from = torch::stable::narrow(source, 0, first, source.size(0) - first);
  torch::stable::copy_(to, from);
}

// `x` as a contiguous tensor of `rows` rows by head, in the type of sums.
Tensor per_head(
    const Tensor& x, const char* name, int64_t rows, int64_t num_heads, ScalarType acc) {
  STD_TORCH_CHECK(
      x.dim() == 2 && x.size(0) == rows && x.size(1) == num_heads, name, " has ", x.numel(),
      " elements, expected ", rows, " x ", num_heads);
  STD_TORCH_CHECK(x.scalar_type() == acc, name, " is not in the type of sums");
  return torch::stable::contiguous(x);
}

std::tuple<Tensor, Tensor, Tensor> relation_attention_backward(
    const Tensor& grad_out, const std::optional<Tensor>& grad_lse, const Tensor& query,
    const Tensor& value, const Tensor& relation, const std::optional<Tensor>&, const Tensor&,
    const Tensor& weight, const Graph& graph, const std::optional<Tensor>& row_mask,
    const std::optional<Tensor>& col_mask, int64_t num_heads,
    const std::optional<Tensor>& zero_edges) {
  AttentionBackwardParams params;
  params.row = row_order(graph, row_mask);
  const OrderView col = masked_columns(graph, row_mask, col_mask);
  params.slots = slots(graph);
  const int64_t num_rows = params.row.num_rows, num_cols = col.num_rows;
  params.dtype = dtype_of(query, "query");
  const ScalarType acc = accumulate_type(params.dtype);
  const Tensor q = operand(query, "query", std::max(num_rows, num_cols), query);
  const Tensor v = operand(value, "value", num_cols, query);
  const Tensor r = operand(relation, "relation", params.slots.num_relations, query);
  const Tensor g = operand(grad_out, "grad_out", num_rows, grad_out);
  params.width = q.size(1);
  params.num_heads = num_heads;
  check_heads(num_heads, params.width);
  check_relations(params.row);
  STD_TORCH_CHECK(
      g.size(1) == params.width && g.scalar_type() == acc, "grad_out does not fit query");
  std::optional<Tensor> gl;
  if (grad_lse) {
    gl = per_head(*grad_lse, "grad_lse", num_rows, num_heads, acc);
    params.grad_lse = gl->const_data_ptr();
  }
  const Tensor a = per_head(weight, "weight", params.row.num_edges, num_heads, acc);
  params.value = matrix(v);
  params.relation = matrix(r);
  params.grad_out = matrix(g);
  params.weight = a.const_data_ptr();
  params.zero_edges = zero_edges_of(zero_edges, params.row, params.dtype);

  Tensor grad_relation = make(query, {r.size(0), params.width}, query.scalar_type());
  // Given back as soon as they have served, before the next matrix of all nodes is made.
  std::optional<Tensor> score_grad = make(query, {params.row.num_edges, num_heads}, acc);
  std::optional<Tensor> slot_grad = make_zeros(query, params.slots.num_slots, params.width, acc);
  params.score_grad = score_grad->mutable_data_ptr();
  params.slot_grad = slot_grad->mutable_data_ptr();
  const int64_t pieces = 2 * params.row.num_parts;
  Tensor partial = make(query, {pieces, num_heads}, acc);
  std::vector<int64_t> partial_row(pieces, -1);
  const Isa isa = isa_for_head(params.width / num_heads, params.dtype);
  params.partial = partial.mutable_data_ptr();
  params.partial_row = partial_row.data();
  parallel_parts(params.row.num_parts, [&](int64_t begin, int64_t end) {
    KGREC_CALL_ON(isa, attention_score_grads, params, begin, end);
  });
  KGREC_ISA_CALL(attention_join_deltas, params);
  parallel_parts(params.row.num_parts, [&](int64_t begin, int64_t end) {
    KGREC_CALL_ON(isa, attention_finish_shares, params, begin, end);
  });

  AggregateParams sum;
  sum.dtype = params.dtype;
  sum.width = params.width;
  sum.num_heads = num_heads;
  sum.relation = params.relation;

  // Heads: ds_e Q[t] * Rel[r] / sqrt(d), and the relations' second share.
  AggregateParams heads = sum;
  const bool half = acc != query.scalar_type();
  Tensor grad_query = make(query, {q.size(0), params.width}, query.scalar_type());
  Tensor row_grad_query = half ? make(query, {q.size(0), params.width}, acc) : grad_query;
  heads.order = params.row;
  heads.x = matrix(q);
  heads.weight = params.score_grad;
  heads.scale = 1 / std::sqrt(double(params.width / num_heads));
  heads.wide_out = true;
  heads.out = row_grad_query.mutable_data_ptr();
  heads.slots = params.slots;
  heads.slot_grad = params.slot_grad;
  heads.left = heads.x;
  run_aggregate(heads);
  run_reduce_slots(heads, grad_relation.mutable_data_ptr());
  zero_rows_from(grad_relation, params.slots.num_relations);
  slot_grad.reset();

  // Rows between the two counts, if any, are written by the column pass alone.
  zero_rows_from(row_grad_query, std::max(num_rows, num_cols));

  // Tails as keys: ds_e Q[h] * Rel[r] / sqrt(d), added to what the same node has got as a head.
  AggregateParams tails = heads;
  tails.order = col;
  tails.wide_out = false;
  tails.slot_grad = nullptr;
  tails.addend = row_grad_query.const_data_ptr();
  tails.addend_rows = num_rows;
  tails.out = grad_query.mutable_data_ptr();
  run_aggregate(tails);
  if (half && num_cols < q.size(0)) {
    copy_rows_from(grad_query, row_grad_query, num_cols);
  }
  score_grad.reset();

  // Tails as values: a_e dO[h] * Rel[r].
  AggregateParams values = sum;
  Tensor grad_value = make(query, {v.size(0), params.width}, query.scalar_type());
  values.order = col;
  values.x = params.grad_out;
  values.wide_x = true;
  values.weight = params.weight;
  values.out = grad_value.mutable_data_ptr();
  run_aggregate(values);
  zero_rows_from(grad_value, num_cols);
  return {grad_query, grad_value, grad_relation};
}

}  // namespace
}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CPU, m) {
  m.impl("relation_attention_backward", TORCH_BOX(&kgrec::cpu::relation_attention_backward));
}
