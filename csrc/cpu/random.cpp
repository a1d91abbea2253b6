#include "cpu/random.h"

#include "cpu/binding.h"

#define KGREC_KERNELS "cpu/random_kernels.h"
#include "cpu/foreach_isa.h"

namespace kgrec::cpu {
namespace {

Tensor random_bits(const Tensor& rng, int64_t stream, int64_t n) {
  constexpr int64_t kGrain = 1 << 15;
  STD_TORCH_CHECK(n >= 0, "n is ", n, ", expected a count");
  Tensor out = make(rng, {n}, ScalarType::Long);
  RandomBitsParams params;
  params.draw = draw_of(rng, stream);
  params.out = out.mutable_data_ptr<int64_t>();
  torch::stable::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(random_bits_range, params, begin, end);
  });
  return out;
}

}  // namespace
}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CPU, m) {
  m.impl("random_bits", TORCH_BOX(&kgrec::cpu::random_bits));
}
