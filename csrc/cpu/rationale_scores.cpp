#include "cpu/binding.h"
#include "cpu/dispatch.h"

namespace kgrec::cpu {

struct RationaleParams {
  OrderView order;
  DType dtype = DType::f32;
  int64_t width = 0;
  int64_t num_heads = 1;
  Matrix query;
  Matrix relation;                 // null for none
  void* logits = nullptr;          // acc [E]
  void* scores = nullptr;          // acc [E]
  void* partial = nullptr;         // acc [2 * num_parts, 3]
  int64_t* partial_row = nullptr;  // [2 * num_parts]
};

}  // namespace kgrec::cpu

#define KGREC_KERNELS "cpu/rationale_scores_kernels.h"
#include "cpu/foreach_isa.h"

namespace kgrec::cpu {
namespace {

std::tuple<Tensor, Tensor> rationale_scores(
    const Tensor& query, const std::optional<Tensor>& relation, const Graph& graph,
    const std::optional<Tensor>& row_mask, int64_t num_heads) {
  RationaleParams params;
  params.order = row_order(graph, row_mask);
  params.dtype = dtype_of(query, "query");
  const Tensor q = operand(query, "query", params.order.num_rows, query);
  params.width = q.size(1);
  check_heads(num_heads, params.width);
  params.num_heads = num_heads;
  params.query = matrix(q);
  std::optional<Tensor> r;
  if (relation) {
    r = operand(*relation, "relation", graph[kSlotPtr].numel() - 1, query);
    check_relations(params.order);
    params.relation = matrix(*r);
  }
  const ScalarType acc = accumulate_type(params.dtype);
  const int64_t pieces = 2 * params.order.num_parts;
  Tensor scores = make(query, {params.order.num_edges}, acc);
  Tensor logits = make(query, {params.order.num_edges}, acc);
  Tensor partial = make(query, {pieces, 3}, acc);
  std::vector<int64_t> partial_row(pieces, -1);
  params.scores = scores.mutable_data_ptr();
  params.logits = logits.mutable_data_ptr();
  params.partial = partial.mutable_data_ptr();
  params.partial_row = partial_row.data();
  parallel_parts(params.order.num_parts, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(rationale_parts, params, begin, end);
  });
  KGREC_ISA_CALL(rationale_merge, params);
  return {scores, logits};
}

}  // namespace
}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CPU, m) {
  m.impl("rationale_scores", TORCH_BOX(&kgrec::cpu::rationale_scores));
}
