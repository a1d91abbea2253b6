#include "cuda/binding.h"
#include "cuda/random.h"

namespace kgrec::cuda {
namespace {

Tensor random_bits(const Tensor& rng, int64_t stream, int64_t n) {
  const OnDevice device(rng, "rng");
  STD_TORCH_CHECK(n >= 0, "n is ", n, ", expected a count");
  RandomBitsParams params;
  params.rng = flat<int64_t>(rng, "rng", 2);
  params.stream = stream;
  params.n = n;
  Tensor out = make(rng, {n}, ScalarType::Long);
  params.out = out.mutable_data_ptr<int64_t>();
  device.launch(launch_random_bits, params);
  return out;
}

}  // namespace
}  // namespace kgrec::cuda

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CUDA, m) {
  m.impl("random_bits", TORCH_BOX(&kgrec::cuda::random_bits));
}
