#include <tuple>

#include "cpu/dispatch.h"
#include "cpu/loss_binding.h"
#include "cpu/losses.h"

#define KGREC_KERNELS "cpu/reconstruction_loss_kernels.h"
#include "cpu/foreach_isa.h"

namespace kgrec::cpu {
namespace {

// The ids of the slots as int32, each below `relations`.
std::vector<int32_t> checked_ids(const Tensor& relation_ids, int64_t slots, int64_t relations) {
  STD_TORCH_CHECK(slots < std::numeric_limits<int32_t>::max(), "head has too many rows");
  const Tensor ids = in_one_piece(relation_ids);
  std::vector<int32_t> checked(static_cast<size_t>(slots));
  const auto check = [&](const auto* from) {
    for (int64_t i = 0; i < slots; ++i) {
      STD_TORCH_CHECK(
          from[i] >= 0 && from[i] < relations, "relation_ids[", i, "] is ", from[i],
          ", expected at least 0 and below ", relations, ", the rows of relation");
      checked[size_t(i)] = int32_t(from[i]);
    }
  };
  if (ids.scalar_type() == ScalarType::Int) {
    check(flat<int32_t>(ids, "relation_ids", slots));
  } else {
    check(flat<int64_t>(ids, "relation_ids", slots));
  }
  return checked;
}

std::tuple<Tensor, Tensor, Tensor> reconstruction_loss(
    const Tensor& head, const Tensor& tail, const Tensor& relation, const Tensor& relation_ids,
    const std::optional<Tensor>& weight) {
  ReconstructionLossParams params;
  params.dtype = dtype_of(head, "head");
  const Tensor heads = operand(head, "head", 0, head);
  params.rows = heads.size(0);
  params.width = heads.size(1);
  const Tensor tails = operand(tail, "tail", params.rows, heads);
  const Tensor relations = operand(relation, "relation", 0, heads);
  const std::vector<int32_t> ids = checked_ids(relation_ids, params.rows, relations.size(0));
  params.head = matrix(heads);
  params.tail = matrix(tails);
  params.relation = matrix(relations);
  params.ids = ids.data();
  params.weight = weight_of(weight, params.rows, params.dtype);
  const ScalarType sums = accumulate_type(params.dtype);
  Tensor score = make(head, {params.rows}, sums);
  params.score = score.mutable_data_ptr();
  const LossSums all =
      sum_chunks(params.rows, params.width, [&](int64_t begin, int64_t end, LossSums* chunk_sums) {
        ReconstructionLossParams part = params;
        part.sums = chunk_sums;
        KGREC_ISA_CALL(reconstruction_loss_chunks, part, begin, end);
      });
  return {scalar(head, mean_of(all), sums), score, scalar(head, all.total, ScalarType::Double)};
}

std::tuple<Tensor, Tensor, Tensor> reconstruction_loss_backward(
    const Tensor& grad, const Tensor& head, const Tensor& tail, const Tensor& relation,
    const Tensor& relation_ids, const std::optional<Tensor>& weight, const Tensor& score,
    const Tensor& total) {
  ReconstructionLossBackwardParams params;
  params.dtype = dtype_of(head, "head");
  const Tensor heads = operand(head, "head", 0, head);
  const int64_t rows = heads.size(0);
  params.width = heads.size(1);
  const Tensor tails = operand(tail, "tail", rows, heads);
  const Tensor relations = operand(relation, "relation", 0, heads);
  const int64_t num_relations = relations.size(0);
  const std::vector<int32_t> ids = checked_ids(relation_ids, rows, num_relations);
  // Chains of the slots of each relation, from the first to the last.
  std::vector<int32_t> first(static_cast<size_t>(num_relations), -1), next(ids.size());
  for (size_t slot = ids.size(); slot-- > 0;) {
    int32_t& head_of_chain = first[size_t(ids[slot])];
    next[slot] = head_of_chain;
    head_of_chain = int32_t(slot);
  }
  params.scale = grad_scale(grad, total, params.dtype);
  params.head = matrix(heads);
  params.tail = matrix(tails);
  params.relation = matrix(relations);
  params.ids = ids.data();
  params.first = first.data();
  params.next = next.data();
  params.weight = weight_of(weight, rows, params.dtype);
  params.score = kept(score, "score", rows, params.dtype);
  Tensor grad_head = make(head, {rows, params.width}, head.scalar_type());
  Tensor grad_tail = make(head, {rows, params.width}, head.scalar_type());
  Tensor grad_relation = make(head, {num_relations, params.width}, head.scalar_type());
  params.grad_head = grad_head.mutable_data_ptr();
  params.grad_tail = grad_tail.mutable_data_ptr();
  params.grad_relation = grad_relation.mutable_data_ptr();
  parallel_rows(rows, params.width, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(reconstruction_loss_backward_rows, params, begin, end);
  });
  const int64_t each = num_relations > 0 ? 1 + rows / num_relations : 1;  // slots, on average
  parallel_rows(num_relations, each * params.width, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(reconstruction_loss_relations, params, begin, end);
  });
  return {grad_head, grad_tail, grad_relation};
}

}  // namespace
}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CPU, m) {
  m.impl("reconstruction_loss", TORCH_BOX(&kgrec::cpu::reconstruction_loss));
  m.impl("reconstruction_loss_backward", TORCH_BOX(&kgrec::cpu::reconstruction_loss_backward));
}
