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

std::tuple<Tensor, Tensor, Tensor> relation_attention_backward(
    const Tensor& grad_out, const Tensor& grad_lse, const Tensor& query, const Tensor& value,
    const Tensor& relation, const Tensor& out, const Tensor& lse, const Graph& graph,
    const std::optional<Tensor>& row_mask, const std::optional<Tensor>& col_mask,
    int64_t num_heads) {
  AttentionBackwardParams params;
  check_masks(row_mask, col_mask);
  params.row = row_order(graph, row_mask);
  params.col = column_order(graph, col_mask);
  params.slots = slots(graph);
  const int64_t num_rows = params.row.num_rows, num_cols = params.col.num_rows;
  params.dtype = dtype_of(query, "query");
  const Tensor q = operand(query, "query", std::max(num_rows, num_cols), query);
  const Tensor v = operand(value, "value", num_cols, query);
  const Tensor r = operand(relation, "relation", params.slots.num_relations, query);
  const Tensor o = operand(out, "out", num_rows, out);
  const Tensor g = operand(grad_out, "grad_out", num_rows, out);
  params.width = q.size(1);
  params.num_heads = num_heads;
  check_heads(num_heads, params.width);
  check_relations(params.row);
  STD_TORCH_CHECK(o.size(1) == params.width && o.is_contiguous(), "out does not fit query");
  STD_TORCH_CHECK(
      o.scalar_type() == accumulate_type(params.dtype), "out is not in the type of its sums");
  const Tensor gl = torch::stable::contiguous(grad_lse);
  for (const Tensor* x : {&gl, &lse}) {
    STD_TORCH_CHECK(
        x->numel() == num_rows * num_heads && x->scalar_type() == o.scalar_type() &&
            x->is_contiguous(),
        "lse does not fit out");
  }
  params.query = matrix(q);
  params.value = matrix(v);
  params.relation = matrix(r);
  params.grad_out = matrix(g);
  params.grad_lse = gl.const_data_ptr();
  params.out = o.const_data_ptr();
  params.lse = lse.const_data_ptr();

  const ScalarType acc = o.scalar_type();
  const bool half = acc != query.scalar_type();
  Tensor grad_query = make(query, {q.size(0), params.width}, query.scalar_type());
  Tensor grad_value = make(query, {v.size(0), params.width}, query.scalar_type());
  Tensor grad_relation = make(query, {r.size(0), params.width}, query.scalar_type());
  Tensor row_grad_query = half ? make(query, {q.size(0), params.width}, acc) : grad_query;
  Tensor edge_weight = make(query, {params.row.num_edges, 2 * num_heads}, acc);
  Tensor slot_grad = make_zeros(query, params.slots.num_slots, params.width, acc);
  const int64_t pieces = 2 * std::max(params.row.num_parts, params.col.num_parts);
  Tensor partial = make(query, {pieces, 2 * params.width}, acc);
  std::vector<int64_t> partial_row(pieces, -1);
  params.grad_query = grad_query.mutable_data_ptr();
  params.grad_value = grad_value.mutable_data_ptr();
  params.grad_relation = grad_relation.mutable_data_ptr();
  params.row_grad_query = row_grad_query.mutable_data_ptr();
  params.edge_weight = edge_weight.mutable_data_ptr();
  params.slot_grad = slot_grad.mutable_data_ptr();
  params.partial = partial.mutable_data_ptr();
  params.partial_row = partial_row.data();

  // The row pass fills one half of its shares only.
  torch::stable::zero_(partial);
  parallel_parts(params.row.num_parts, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(attention_row_parts, params, begin, end);
  });
  KGREC_ISA_CALL(attention_row_merge, params);
  parallel_parts(params.slots.num_relations, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(attention_reduce_relations, params, begin, end);
  });
  zero_rows_from(grad_relation, params.slots.num_relations);
  // Rows between the two counts, if any, are written by the column pass alone.
  zero_rows_from(row_grad_query, std::max(num_rows, num_cols));

  std::fill(partial_row.begin(), partial_row.end(), -1);
  parallel_parts(params.col.num_parts, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(attention_column_parts, params, begin, end);
  });
  KGREC_ISA_CALL(attention_column_merge, params);
  zero_rows_from(grad_value, num_cols);
  if (half && num_cols < q.size(0)) {
    copy_rows_from(grad_query, row_grad_query, num_cols);
  }
  return {grad_query, grad_value, grad_relation};
}

}  // namespace
}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CPU, m) {
  m.impl("relation_attention_backward", TORCH_BOX(&kgrec::cpu::relation_attention_backward));
}
