#include <tuple>

#include "common/topk_items_binding.h"
#include "cuda/binding.h"
#include "cuda/topk_items.h"

namespace kgrec::cuda {
namespace {

std::tuple<Tensor, Tensor> topk_rows(
    const Tensor& scores, const std::optional<Tensor>& known_ptr,
    const std::optional<Tensor>& known_items, const std::optional<Tensor>& users, int64_t k) {
  const OnDevice device(scores, "scores");
  const TopkOperands operands = topk_operands(scores, known_ptr, known_items, users, k);
  STD_TORCH_CHECK(
      operands.k <= kMaxTopk, "k is ", operands.k, ", expected at most ", kMaxTopk, " on CUDA");
  TopkRowsParams params;
  params.dtype = dtype_of(scores, "scores");
  params.rows = operands.rows;
  params.num_items = operands.num_items;
  params.k = operands.k;
  params.scores = operands.scores.const_data_ptr();
  params.known = operands.known;
  Tensor values = make(scores, {operands.rows, params.k}, scores.scalar_type());
  Tensor items = make(scores, {operands.rows, params.k}, ScalarType::Long);
  params.values = values.mutable_data_ptr();
  params.items = items.mutable_data_ptr<int64_t>();
  const int64_t words = params.known.ptr != nullptr ? words_of(params.num_items) : 0;
  Tensor bits = make(scores, {operands.rows, words}, ScalarType::Int);
  if (words > 0) {
    params.known_bits = reinterpret_cast<uint32_t*>(bits.mutable_data_ptr<int32_t>());
  }
  device.launch(launch_topk_rows, params);
  return {values, items};
}

}  // namespace
}  // namespace kgrec::cuda

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CUDA, m) {
  m.impl("topk_rows", TORCH_BOX(&kgrec::cuda::topk_rows));
}
