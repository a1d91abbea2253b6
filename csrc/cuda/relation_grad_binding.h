// The memory that gradients of the relations need, for the bindings of the row passes that make
// them.
#pragma once

#include "cuda/binding.h"
#include "cuda/relation_grad.h"

namespace kgrec::cuda {

// Sums for all rows of `grad_relation`, in a tensor of their own where it is of a half type.
class SumsMemory {
 public:
  SumsMemory(
      const OnDevice& device, const Graph& graph, const RowPlan& plan, DType dtype, int64_t width,
      Tensor& grad_relation)
      : grad_relation_(grad_relation), wide_(grad_relation) {
    const ScalarType acc = accumulate_type(dtype);
    sums_.runs = run_plan(graph);
    sums_.in_shared =
        shared_sums_bytes(accumulate(dtype), width, sums_.runs.num_relations) <= kSumsSharedBytes;
    sums_.blocks = sums_blocks(plan);
    if (acc != grad_relation.scalar_type()) {
      wide_ = make(grad_relation, {grad_relation.size(0), width}, acc);
    }
    work_ = make(grad_relation, {sums_work_rows(sums_), width}, acc);
    device.zero_rows_from(wide_, 0);
    sums_.work = work_->mutable_data_ptr();
    sums_.grad = wide_.mutable_data_ptr();
  }

  const RelationSums& sums() const { return sums_; }

  // After the launch.
  void finish() {
    if (wide_.scalar_type() != grad_relation_.scalar_type()) {
      torch::stable::copy_(grad_relation_, wide_);
    }
  }

 private:
  RelationSums sums_;
  Tensor& grad_relation_;
  Tensor wide_;
  std::optional<Tensor> work_;
};

}  // namespace kgrec::cuda
