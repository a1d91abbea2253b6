// Standard Gumbel noise, -log(-log(u)), with the same bits everywhere: the logarithm is made of
// products and sums of floats, each rounded by itself. kgrec_fast/ops/gumbel.py has the same
// steps in torch.
//
// Included inside a namespace, once for every instruction set and once for CUDA, hence no include
// guard. KGREC_GUMBEL is what stands before a function there. L has the primitives for
// F and I, which are float and int32_t or vectors of them:
//   product(F, F)   rounded, and never contracted with the sum that it goes into
//   splat(float), to_float(I) to the nearest, to_int(F) of whole numbers, as_float(I), as_int(F)

constexpr int kMantissaBits = 23;
constexpr int kExponentBias = 127;
constexpr int kRootHalfBits = 0x3f3504f3;  // sqrt(1/2)

// log((1 + f) 2^e) for 1 + f in [sqrt(1/2), sqrt(2)]: f - f^2 / 2 + f^3 P(f) + e ln 2.
template <class L, class F>
KGREC_GUMBEL F gumbel_log(F f, F e) {
  const F square = L::product(f, f);
  const F fourth = L::product(square, square);
  // By halves, which makes for a shorter chain of operations than Horner's rule.
  const F low =
      L::splat(0x1.555554p-2f) + L::product(f, L::splat(-0x1.000226p-2f)) +
      L::product(L::splat(0x1.99a008p-3f) + L::product(f, L::splat(-0x1.547244p-3f)), square);
  const F high =
      L::splat(0x1.22da1ep-3f) + L::product(f, L::splat(-0x1.0d8542p-3f)) +
      L::product(L::splat(0x1.055b68p-3f) + L::product(f, L::splat(-0x1.38b576p-4f)), square);
  const F p = low + L::product(high, fourth);
  // ln 2 in two parts, the first so short that its product with an exponent is exact.
  const F tail = L::product(L::product(f, square), p) + L::product(e, L::splat(-0x1.bd0106p-13f)) -
                 L::product(square, L::splat(0.5f));
  return f + tail + L::product(e, L::splat(0x1.63p-1f));
}

// -log(-log((k + 0.5) / 2^24)) for the 24 high bits k of a word.
template <class L, class I>
KGREC_GUMBEL auto gumbel(I k) {
  // u = odd / 2^25. A float does not hold it, but it does hold f: of odd - 2^e there are no more
  // than 24 bits.
  const I odd = k + k + 1;
  I e = (L::as_int(L::to_float(odd)) - kRootHalfBits) >> kMantissaBits;
  const auto power = L::as_float((e + kExponentBias) << kMantissaBits);
  const auto inverse = L::as_float((kExponentBias - e) << kMantissaBits);
  const auto f = L::product(L::to_float(odd - L::to_int(power)), inverse);
  const auto x = -gumbel_log<L>(f, L::to_float(e - (kUniformBits + 1)));

  e = (L::as_int(x) - kRootHalfBits) >> kMantissaBits;
  const auto mantissa = L::as_float(L::as_int(x) - e * (1 << kMantissaBits));
  return -gumbel_log<L>(mantissa - L::splat(1.0f), L::to_float(e));
}
