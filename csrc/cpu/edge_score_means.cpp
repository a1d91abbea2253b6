#include "cpu/binding.h"
#include "cpu/dispatch.h"

namespace kgrec::cpu {

// Everything is added up in double, which costs nothing beside reading at random places.
struct EdgeScoreMeansParams {
  OrderView order;  // of columns, without a mask of its own
  bool is_double = false;
  const uint8_t* row_mask = nullptr;  // [E] row order, null for all edges
  const void* score = nullptr;        // [E] row order
  int64_t num_items = 0;
  void* out = nullptr;               // [num_items]
  double* partial = nullptr;         // [2 * num_parts] sums of columns that parts share
  int64_t* partial_count = nullptr;  // [2 * num_parts]
  int64_t* partial_row = nullptr;    // [2 * num_parts], -1 where there is none
};

}  // namespace kgrec::cpu

#define KGREC_KERNELS "cpu/edge_score_means_kernels.h"
#include "cpu/foreach_isa.h"

namespace kgrec::cpu {
namespace {

Tensor edge_score_means(
    const Tensor& score, const Graph& graph, const std::optional<Tensor>& row_mask,
    int64_t num_items) {
  EdgeScoreMeansParams params;
  params.order = column_order(graph, std::nullopt);
  const OrderView& order = params.order;
  STD_TORCH_CHECK(
      num_items >= 0 && num_items <= order.num_rows, "num_items is ", num_items,
      ", expected no more than ", order.num_rows);
  check_device(score, "score");
  const Tensor source = torch::stable::contiguous(score);
  STD_TORCH_CHECK(
      source.numel() == order.num_edges, "score has ", source.numel(), " elements, expected ",
      order.num_edges);
  params.is_double = whole_dtype_of(score, "score") == DType::f64;
  params.row_mask = mask_of(row_mask, order.num_edges);
  params.score = source.const_data_ptr();
  params.num_items = num_items;
  Tensor out = make(score, {num_items}, score.scalar_type());
  params.out = out.mutable_data_ptr();
  // Parts are in order of columns: those behind the last one that is asked for have no work.
  const int64_t* last = order.part_row + order.num_parts;
  const int64_t parts = std::lower_bound(order.part_row, last, num_items) - order.part_row;
  std::vector<double> partial(2 * parts);
  std::vector<int64_t> counts(2 * parts), rows(2 * parts, -1);
  params.partial = partial.data();
  params.partial_count = counts.data();
  params.partial_row = rows.data();
  parallel_parts(parts, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(edge_score_means_parts, params, begin, end);
  });
  KGREC_ISA_CALL(edge_score_means_merge, params, 2 * parts);
  return out;
}

}  // namespace
}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CPU, m) {
  m.impl("edge_score_means", TORCH_BOX(&kgrec::cpu::edge_score_means));
}
