#include "cpu/relation_attention.h"

#include "cpu/aggregate.h"
#include "cpu/binding.h"
#include "cpu/dispatch.h"

#define KGREC_KERNELS "cpu/relation_attention_kernels.h"
#include "cpu/foreach_isa.h"

namespace kgrec::cpu {
namespace {

// Weights that nobody keeps are made for so many edges at a time.
constexpr int64_t kPassingWeightBytes = 5 << 20;

// The first part at or after `part` that shares no row with the parts before `part` and, unless it
// is the last, leaves at least `edges` edges between the two.
int64_t next_cut(const OrderView& order, int64_t part, int64_t edges) {
  const int64_t begin = order.part_edge[part];
  for (++part; part < order.num_parts; ++part) {
    const int64_t row = order.part_row[part];
    const bool between_rows = row == order.num_rows || order.part_edge[part] == order.ptr[row];
    if (between_rows && order.part_edge[part] - begin >= edges) {
      break;
    }
  }
  return part;
}

std::tuple<Tensor, Tensor, Tensor> relation_attention(
    const Tensor& query, const Tensor& value, const Tensor& relation, const Graph& graph,
    const std::optional<Tensor>& row_mask, const std::optional<Tensor>&, int64_t num_heads,
    bool keep_weight, const std::optional<Tensor>& zero_edges) {
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
  params.relation = matrix(r);
  const ScalarType acc = accumulate_type(params.dtype);
  const int64_t num_parts = params.row.num_parts;
  Tensor out = make(query, {params.row.num_rows, params.width}, acc);
  Tensor lse = make(query, {params.row.num_rows, num_heads}, acc);
  Tensor weight = make(query, {keep_weight ? params.row.num_edges : 0, num_heads}, acc);
  Tensor partial = make(query, {2 * num_parts, 2 * num_heads}, acc);
  std::vector<int64_t> partial_row(2 * num_parts, -1);
  params.zero_edges = zero_edges_of(zero_edges, params.row, params.dtype);
  params.lse = lse.mutable_data_ptr();
  params.partial = partial.mutable_data_ptr();
  params.partial_row = partial_row.data();

  AggregateParams sum;
  sum.order = params.row;
  sum.dtype = params.dtype;
  sum.width = params.width;
  sum.num_heads = num_heads;
  sum.x = matrix(v);
  sum.relation = params.relation;
  sum.wide_out = true;
  sum.out = out.mutable_data_ptr();

  const Isa isa = isa_for_head(params.width / num_heads, params.dtype);
  const int64_t edge_bytes = num_heads * int64_t(lse.element_size());
  const int64_t at_once = keep_weight ? params.row.num_edges + 1 : kPassingWeightBytes / edge_bytes;
  for (int64_t first = 0, last; first < num_parts; first = last) {
    last = next_cut(params.row, first, at_once);
    params.first_weight = params.row.part_edge[first];
    Tensor passing = weight;
    if (!keep_weight) {
      const int64_t edges = params.row.part_edge[last] - params.first_weight;
      passing = make(query, {edges, num_heads}, acc);
    }
    params.weight = passing.mutable_data_ptr();
    parallel_parts(last - first, [&](int64_t begin, int64_t end) {
      KGREC_CALL_ON(isa, attention_weights, params, first + begin, first + end);
    });
    KGREC_ISA_CALL(attention_join, params, 2 * first, 2 * last);
    parallel_parts(last - first, [&](int64_t begin, int64_t end) {
      KGREC_CALL_ON(isa, attention_finish, params, first + begin, first + end);
    });
    sum.weight = params.weight;
    sum.first_weight = params.first_weight;
    run_aggregate(sum, first, last);
  }
  return {out, lse, weight};
}

}  // namespace
}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CPU, m) {
  m.impl("relation_attention", TORCH_BOX(&kgrec::cpu::relation_attention));
}
