#include <functional>
#include <tuple>

#include "common/topk_items_binding.h"
#include "cpu/binding.h"

namespace kgrec::cpu {

struct TopkRowsParams {
  bool is_double = false;
  const void* scores = nullptr;  // [rows, num_items]
  int64_t num_items = 0;
  int64_t k = 0;  // at most num_items
  KnownView known;
  void* values = nullptr;    // [rows, k]
  int64_t* items = nullptr;  // [rows, k]
};

}  // namespace kgrec::cpu

#define KGREC_KERNELS "cpu/topk_items_kernels.h"
#include "cpu/foreach_isa.h"

namespace kgrec::cpu {
namespace {

std::tuple<Tensor, Tensor> topk_rows(
    const Tensor& scores, const std::optional<Tensor>& known_ptr,
    const std::optional<Tensor>& known_items, const std::optional<Tensor>& users, int64_t k) {
  constexpr int64_t kGrain = 1 << 15;  // scores that are worth a thread
  const TopkOperands operands = topk_operands(scores, known_ptr, known_items, users, k);
  TopkRowsParams params;
  params.is_double = scores.scalar_type() == ScalarType::Double;
  params.scores = operands.scores.const_data_ptr();
  params.num_items = operands.num_items;
  params.k = operands.k;
  params.known = operands.known;
  Tensor values = make(scores, {operands.rows, params.k}, scores.scalar_type());
  Tensor items = make(scores, {operands.rows, params.k}, ScalarType::Long);
  params.values = values.mutable_data_ptr();
  params.items = items.mutable_data_ptr<int64_t>();
  if (items.numel() > 0) {
    const int64_t grain = std::max<int64_t>(1, kGrain / params.num_items);
    torch::stable::parallel_for(0, operands.rows, grain, [&](int64_t begin, int64_t end) {
      KGREC_ISA_CALL(topk_rows_range, params, begin, end);
    });
  }
  return {values, items};
}

}  // namespace
}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CPU, m) {
  m.impl("topk_rows", TORCH_BOX(&kgrec::cpu::topk_rows));
}
