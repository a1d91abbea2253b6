#include "cpu/relation_attention.h"

#include "cpu/binding.h"
#include "cpu/dispatch.h"

#define KGREC_KERNELS "cpu/relation_attention_kernels.h"
#include "cpu/foreach_isa.h"

namespace kgrec::cpu {
namespace {

std::tuple<Tensor, Tensor> relation_attention(
    const Tensor& query, const Tensor& value, const Tensor& relation, const Graph& graph,
    const std::optional<Tensor>& row_mask, const std::optional<Tensor>&, int64_t num_heads) {
  AttentionParams params;
  params.row = row_order(graph, row_mask);
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
  Tensor out = make(query, {params.row.num_rows, params.width}, acc);
  Tensor lse = make(query, {params.row.num_rows, num_heads}, acc);
  params.out = out.mutable_data_ptr();
  params.lse = lse.mutable_data_ptr();
  const int64_t pieces = 2 * params.row.num_parts;
  Tensor partial = make(query, {pieces, params.width + 2 * num_heads}, acc);
  std::vector<int64_t> partial_row(pieces, -1);
  params.partial = partial.mutable_data_ptr();
  params.partial_row = partial_row.data();
  parallel_parts(params.row.num_parts, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(attention_forward_parts, params, begin, end);
  });
  KGREC_ISA_CALL(attention_forward_merge, params);
  return {out, lse};
}

}  // namespace
}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CPU, m) {
  m.impl("relation_attention", TORCH_BOX(&kgrec::cpu::relation_attention));
}
