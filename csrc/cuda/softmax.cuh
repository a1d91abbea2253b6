// A softmax whose numbers are seen in parts. Of each part its highest number is known and the sum
// of exponentials against that; a NaN may be lost in the former, never in the latter.
#pragma once

#include "cuda/device.cuh"

namespace kgrec::cuda {

// What exponents are taken against: without a highest number nothing but 0 and NaN is added.
template <class A>
KGREC_DEVICE A base_of(A top) {
  return top == A(-INFINITY) ? A(0) : top;
}

// The sum of a part, from that against its own highest number to that against `whole`.
template <class A>
KGREC_DEVICE A rebase(A total, A top, A whole) {
  // A sum against no highest number is 0 or NaN, and stays so.
  return top == A(-INFINITY) ? total : total * exp(top - whole);
}

// Adds `count` numbers 0 to a softmax; returns what sums against the former top are to be
// multiplied by.
template <class A>
KGREC_DEVICE A add_zeros(A count, A& top, A& total) {
  if (count == A(0)) {
    return A(1);
  }
  const A larger = top > A(0) ? top : A(0);
  const A factor = exp(top - larger);
  total = total * factor + count * exp(-larger);
  top = larger;
  return factor;
}

}  // namespace kgrec::cuda
