// The segment ops, for those that find their rows sorted.
#pragma once

#include "cpu/binding.h"

namespace kgrec::cpu {

Tensor segment_sum(const Tensor& src, const Tensor& ptr);
Tensor segment_softmax(const Tensor& src, const Tensor& ptr);
Tensor segment_softmax_backward(const Tensor& grad_out, const Tensor& out, const Tensor& ptr);

}  // namespace kgrec::cpu
