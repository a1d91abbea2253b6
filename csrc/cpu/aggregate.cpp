#include "cpu/aggregate.h"

#include "cpu/binding.h"
#include "cpu/dispatch.h"

#define KGREC_KERNELS "cpu/aggregate_kernels.h"
#include "cpu/foreach_isa.h"

namespace kgrec::cpu {

void run_aggregate(AggregateParams& params, int64_t first, int64_t last) {
  const int64_t pieces = 2 * params.order.num_parts;
  std::vector<int64_t> partial_row(pieces, -1), partial_count(pieces, 0);
  const size_t size = params.dtype == DType::f64 ? sizeof(double) : sizeof(float);
  std::unique_ptr<char[]> partial(new char[size * (pieces * params.width)]);
  params.partial = partial.get();
  params.partial_row = partial_row.data();
  params.partial_count = partial_count.data();
  const Isa isa = isa_for_head(params.width / params.num_heads, params.dtype);
  parallel_parts(last - first, [&](int64_t begin, int64_t end) {
    KGREC_CALL_ON(isa, aggregate_parts, params, first + begin, first + end);
  });
  if (params.out != nullptr) {
    KGREC_ISA_CALL(aggregate_merge, params, 2 * first, 2 * last);
  }
}

void run_reduce_slots(const AggregateParams& params, void* grad_relation) {
  parallel_parts(params.slots.num_relations, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(reduce_slots, params, grad_relation, begin, end);
  });
}

namespace {

Tensor weighted_aggregate(
    const Tensor& x, const std::optional<Tensor>& weight, const std::optional<Tensor>& row_weight,
    const Graph& graph, const std::optional<Tensor>& row_mask,
    const std::optional<Tensor>& col_mask, bool transpose, int64_t out_rows) {
  AggregateParams params;
  params.order = transpose ? masked_columns(graph, row_mask, col_mask) : row_order(graph, row_mask);
  params.order.rel = nullptr;
  params.dtype = dtype_of(x, "x");
  const int64_t sources = (transpose ? graph[kRowPtr].numel() - 1 : 0);
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
  run_aggregate(params);
  zero_rows_from(out, params.order.num_rows);
  return out;
}

Tensor edge_dot(
    const Tensor& row_side, const Tensor& col_side, const Graph& graph,
    const std::optional<Tensor>& row_mask, const std::optional<Tensor>&) {
  EdgeDotParams params;
  params.order = row_order(graph, row_mask);
  params.dtype = dtype_of(row_side, "row_side");
  const Tensor left = operand(row_side, "row_side", params.order.num_rows, row_side);
  const Tensor right = operand(col_side, "col_side", 0, row_side);
  params.width = left.size(1);
  params.row_side = matrix(left);
  params.col_side = matrix(right);
  Tensor out = make(row_side, {params.order.num_edges}, accumulate_type(params.dtype));
  params.out = out.mutable_data_ptr();
  parallel_parts(params.order.num_parts, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(edge_dot_parts, params, begin, end);
  });
  return out;
}

}  // namespace
}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CPU, m) {
  m.impl("weighted_aggregate", TORCH_BOX(&kgrec::cpu::weighted_aggregate));
  m.impl("edge_dot", TORCH_BOX(&kgrec::cpu::edge_dot));
}
