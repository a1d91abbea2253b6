#include "cuda/binding.h"
#include "cuda/selection.h"

namespace kgrec::cuda {
namespace {

Tensor gumbel_noise(int64_t n, const Tensor& rng, int64_t stream) {
  const OnDevice device(rng, "rng");
  STD_TORCH_CHECK(n >= 0, "n is ", n, ", expected a count");
  GumbelParams params;
  params.rng = flat<int64_t>(rng, "rng", 2);
  params.stream = stream;
  params.n = n;
  Tensor out = make(rng, {n}, ScalarType::Float);
  params.out = out.mutable_data_ptr<float>();
  device.launch(launch_gumbel, params);
  return out;
}

Tensor topk_mask(
    const Tensor& values, std::optional<int64_t> k, std::optional<double> rate, bool largest,
    const std::optional<Tensor>& mask, const std::optional<Tensor>& rng,
    std::vector<int64_t> streams, const std::optional<Tensor>& index) {
  const OnDevice device(values, "values");
  STD_TORCH_CHECK(!index.has_value(), "index is for the CPU: select the values first");
  STD_TORCH_CHECK(k.has_value() != rate.has_value(), "k or rate is expected, and not both");
  STD_TORCH_CHECK(streams.size() <= kMaxStreams, "streams has more than ", kMaxStreams, " numbers");
  STD_TORCH_CHECK(streams.empty() || rng.has_value(), "rng is expected with streams");
  TopkParams params;
  params.dtype = dtype_of(values, "values");
  params.n = values.numel();
  const Tensor source = torch::stable::contiguous(values);
  params.values = source.const_data_ptr();
  const Tensor bits = mask ? torch::stable::contiguous(*mask) : source;
  params.mask = mask ? mask_of(bits, params.n) : nullptr;
  params.largest = largest;
  params.k = k.value_or(-1);
  params.rate = rate.value_or(0);
  const Tensor seed_step = rng ? torch::stable::contiguous(*rng) : source;
  params.rng = streams.empty() ? nullptr : flat<int64_t>(seed_step, "rng", 2);
  std::copy(streams.begin(), streams.end(), params.streams);
  params.num_streams = static_cast<int>(streams.size());

  const int64_t passes = key_passes(params.dtype) + id_passes(params.n);
  const int64_t groups = (params.n + kGroup - 1) / kGroup;
  Tensor keys = make(
      values, {groups * kGroup}, params.dtype == DType::f64 ? ScalarType::Long : ScalarType::Int);
  Tensor histograms = make(values, {passes * kBins}, ScalarType::Long);
  constexpr int64_t kStateWords = sizeof(SelectState) / sizeof(int64_t);
  Tensor states = make(values, {passes * kStateWords}, ScalarType::Long);
  Tensor out = make(values, {params.n}, ScalarType::Bool);
  params.keys = keys.mutable_data_ptr();
  params.histograms = static_cast<unsigned long long*>(histograms.mutable_data_ptr());
  params.states = static_cast<SelectState*>(states.mutable_data_ptr());
  params.out = reinterpret_cast<uint8_t*>(out.mutable_data_ptr<bool>());
  device.launch(launch_topk, params);
  return out;
}

Tensor mask_positions(const Tensor& mask, int64_t count) {
  const OnDevice device(mask, "mask");
  STD_TORCH_CHECK(count >= 0, "count is ", count, ", expected a count");
  const Tensor bits = torch::stable::contiguous(mask);
  PositionsParams params;
  params.n = bits.numel();
  params.mask = mask_of(bits, params.n);
  params.tiles = (params.n + kTileBits - 1) / kTileBits;
  Tensor first = make(mask, {params.tiles + 1}, ScalarType::Long);
  Tensor out = make(mask, {count}, ScalarType::Long);
  params.first = first.mutable_data_ptr<int64_t>();
  params.count = count;
  params.out = out.mutable_data_ptr<int64_t>();
  device.launch(launch_positions, params);
  return out;
}

}  // namespace
}  // namespace kgrec::cuda

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CUDA, m) {
  m.impl("gumbel_noise", TORCH_BOX(&kgrec::cuda::gumbel_noise));
  m.impl("topk_mask", TORCH_BOX(&kgrec::cuda::topk_mask));
  m.impl("mask_positions", TORCH_BOX(&kgrec::cuda::mask_positions));
}
