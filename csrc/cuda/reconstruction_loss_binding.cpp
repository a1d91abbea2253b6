#include <tuple>

#include "cuda/loss_binding.h"

namespace kgrec::cuda {
namespace {

RelationIds ids_of(const Tensor& ids, int64_t slots) {
  if (ids.scalar_type() == ScalarType::Int) {
    return {flat<int32_t>(ids, "relation_ids", slots), false};
  }
  return {flat<int64_t>(ids, "relation_ids", slots), true};
}

std::tuple<Tensor, Tensor, Tensor> reconstruction_loss(
    const Tensor& head, const Tensor& tail, const Tensor& relation, const Tensor& relation_ids,
    const std::optional<Tensor>& weight) {
  const OnDevice device(head, "head");
  ReconstructionLossParams params;
  params.dtype = dtype_of(head, "head");
  const Tensor heads = operand(head, "head", 0, head);
  params.rows = heads.size(0);
  params.width = heads.size(1);
  const Tensor tails = operand(tail, "tail", params.rows, heads);
  const Tensor relations = operand(relation, "relation", 0, heads);
  const Tensor ids = torch::stable::contiguous(relation_ids);
  params.num_relations = relations.size(0);
  params.head = matrix(heads);
  params.tail = matrix(tails);
  params.relation = matrix(relations);
  params.ids = ids_of(ids, params.rows);
  params.weight = weight_of(weight, params.rows, params.dtype);
  Tensor score = make(head, {params.rows}, accumulate_type(params.dtype));
  params.score = score.mutable_data_ptr();
  MeanTensors mean(head, params.rows, params.dtype);
  params.mean = mean.view();
  device.launch(launch_reconstruction_loss, params);
  return {mean.loss, score, mean.total};
}

std::tuple<Tensor, Tensor, Tensor> reconstruction_loss_backward(
    const Tensor& grad, const Tensor& head, const Tensor& tail, const Tensor& relation,
    const Tensor& relation_ids, const std::optional<Tensor>& weight, const Tensor& score,
    const Tensor& total) {
  const OnDevice device(head, "head");
  ReconstructionLossBackwardParams params;
  params.dtype = dtype_of(head, "head");
  const Tensor heads = operand(head, "head", 0, head);
  params.rows = heads.size(0);
  params.width = heads.size(1);
  const Tensor tails = operand(tail, "tail", params.rows, heads);
  const Tensor relations = operand(relation, "relation", 0, heads);
  const Tensor ids = torch::stable::contiguous(relation_ids);
  params.num_relations = relations.size(0);
  params.grad = kept(grad, "grad", 1, params.dtype);
  params.total = flat<double>(total, "total", 1);
  params.head = matrix(heads);
  params.tail = matrix(tails);
  params.relation = matrix(relations);
  params.ids = ids_of(ids, params.rows);
  params.weight = weight_of(weight, params.rows, params.dtype);
  params.score = kept(score, "score", params.rows, params.dtype);
  const auto gradient = [&](int64_t rows) {
    return make(head, {rows, params.width}, head.scalar_type());
  };
  Tensor grad_head = gradient(params.rows), grad_tail = gradient(params.rows);
  Tensor grad_relation = gradient(params.num_relations);
  params.grad_head = grad_head.mutable_data_ptr();
  params.grad_tail = grad_tail.mutable_data_ptr();
  params.grad_relation = grad_relation.mutable_data_ptr();
  device.launch(launch_reconstruction_loss_backward, params);
  return {grad_head, grad_tail, grad_relation};
}

}  // namespace
}  // namespace kgrec::cuda

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CUDA, m) {
  m.impl("reconstruction_loss", TORCH_BOX(&kgrec::cuda::reconstruction_loss));
  m.impl("reconstruction_loss_backward", TORCH_BOX(&kgrec::cuda::reconstruction_loss_backward));
}
