// What the loss kernels of both libraries agree on: formulas of a row, and what is kept of it.
#pragma once

#include <math.h>

#include "common/types.h"

namespace kgrec {

// The loss is added up over chunks of so many rows, then over the chunks in order.
constexpr int64_t kLossChunk = 64;

// A chunk's share of a weighted mean.
struct LossSums {
  double loss = 0;   // of weight * loss of a row
  double total = 0;  // of weights
};

// The mean; 0 where nothing has a weight.
KGREC_HOST_DEVICE inline double mean_of(const LossSums& sums) {
  return sums.total == 0 ? 0.0 : sums.loss / sums.total;
}

// sigmoid(x) and sigmoid(-x), each without cancellation, from e = exp(-|x|).
template <class A>
struct Sigmoid {
  A of, of_minus;
  KGREC_HOST_DEVICE Sigmoid(A x, A e) {
    const A large = A(1) / (A(1) + e), small = e * large;
    of = x < 0 ? small : large;
    of_minus = x < 0 ? large : small;
  }
};

// log(1 + exp(x)) from e = exp(-|x|).
template <class A>
KGREC_HOST_DEVICE A softplus(A x, A e) {
  return (x > 0 ? x : x != x ? x : A(0)) + log1p(e);
}

// -log(eps + sigmoid(x)). For positive x the sigmoid is taken out: 1 + a little rounds the loss
// off.
template <class A>
KGREC_HOST_DEVICE A ranking_loss(A x, A e, A eps) {
  if (eps == 0) {
    return softplus(-x, e);
  }
  return x < 0 ? -log(eps + Sigmoid<A>(x, e).of) : log1p(e) - log1p(eps * (A(1) + e));
}

// Its derivative, -sigmoid(x) sigmoid(-x) / (eps + sigmoid(x)).
template <class A>
KGREC_HOST_DEVICE A ranking_slope(A x, A e, A eps) {
  const Sigmoid<A> sigmoid(x, e);
  return eps == 0 ? -sigmoid.of_minus : -sigmoid.of_minus * (sigmoid.of / (eps + sigmoid.of));
}

// What is kept of row i of a contrast. With s_ij the cosine of row i of the first view and row j of
// the second, and p the permutation:
template <class A>
struct alignas(16) ContrastRow {
  A inverse1, inverse2;         // of the norms of both views, 0 for a row of zeros
  A positive, forth, back;      // s_ii, s_ip(i), s_p(i)i
  A weight_forth, weight_back;  // the derivatives of the loss by s_ip(i) / tau and s_p(i)i / tau
  A unused;
};

// Scalars in a ContrastRow; kept equal to what the op's fake says by opcheck.
constexpr int64_t kContrastScalars = 8;

// What multiplies rows of the views in the gradient of row i, and where they are: j is p(i), and k
// the row with p(k) = i.
template <class A>
struct ContrastFactors {
  A first_own, first_forth, first_back, first_along;      // z2_i, z2_j, z2_k, z1_i in that of z1_i
  A second_own, second_forth, second_back, second_along;  // z1_i, z1_k, z1_j, z2_i in that of z2_i

  KGREC_HOST_DEVICE ContrastFactors(
      const ContrastRow<A>& i, const ContrastRow<A>& j, const ContrastRow<A>& k, A grad_i, A grad_k,
      A tau, A inverse_eps) {
    const A forth_i = grad_i * i.weight_forth / tau, back_i = grad_i * i.weight_back / tau;
    const A forth_k = grad_k * k.weight_forth / tau, back_k = grad_k * k.weight_back / tau;
    const A own = -(forth_i + back_i);
    first_own = i.inverse1 * (own * i.inverse2);
    first_forth = i.inverse1 * (forth_i * j.inverse2);
    first_back = i.inverse1 * (back_k * k.inverse2);
    second_own = i.inverse2 * (own * i.inverse1);
    second_forth = i.inverse2 * (forth_k * k.inverse1);
    second_back = i.inverse2 * (back_i * j.inverse1);
    // Below eps the norm was replaced by a constant: nothing is taken off along the row itself.
    const A first = own * i.positive + forth_i * i.forth + back_k * k.back;
    const A second = own * i.positive + forth_k * k.forth + back_i * i.back;
    first_along = i.inverse1 == inverse_eps ? A(0) : -i.inverse1 * (i.inverse1 * first);
    second_along = i.inverse2 == inverse_eps ? A(0) : -i.inverse2 * (i.inverse2 * second);
  }
};

// tau in the type of sums, where it must not become 0.
template <class A>
KGREC_HOST_DEVICE A temperature(double tau) {
  constexpr double kLeast = sizeof(A) == 4 ? 1.1754943508222875e-38 : 2.2250738585072014e-308;
  return A(tau < kLeast ? kLeast : tau);
}

}  // namespace kgrec
