#include <tuple>

#include "cuda/binding.h"
#include "cuda/rationale_scores.h"

namespace kgrec::cuda {
namespace {

std::tuple<Tensor, Tensor> rationale_scores(
    const Tensor& query, const std::optional<Tensor>& relation, const Graph& graph,
    const std::optional<Tensor>& row_mask, int64_t num_heads) {
  const OnDevice device(query, "query");
  RationaleParams params;
  params.order = row_order(graph, row_mask);
  params.plan = row_plan(graph);
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
  Tensor scores = make(query, {params.order.num_edges}, acc);
  Tensor logits = make(query, {params.order.num_edges}, acc);
  Tensor partial = make(query, {params.plan.num_chunks, 2}, acc);
  Tensor count = make(query, {params.plan.num_chunks}, ScalarType::Int);
  params.scores = scores.mutable_data_ptr();
  params.logits = logits.mutable_data_ptr();
  params.partial = partial.mutable_data_ptr();
  params.partial_count = count.mutable_data_ptr<int32_t>();
  device.launch(launch_rationale_scores, params);
  return {scores, logits};
}

}  // namespace
}  // namespace kgrec::cuda

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CUDA, m) {
  m.impl("rationale_scores", TORCH_BOX(&kgrec::cuda::rationale_scores));
}
