#include "cuda/sampling.h"

#include "common/philox.h"
#include "cuda/binding.h"

namespace kgrec::cuda {
namespace {

constexpr int64_t kMaxElements = (int64_t(1) << 31) - 1;

void check_size(const char* name, int64_t size, int64_t most) {
  STD_TORCH_CHECK(
      size >= 0 && size <= most, name, " is ", size, ", expected 0 <= ", name, " <= ", most);
}

Tensor sample_edges_per_relation(
    const Tensor& rng, const Tensor& rel, const Tensor& rank, const Tensor& count, double rate,
    int64_t stream) {
  const OnDevice device(rel, "rel");
  STD_TORCH_CHECK(rate >= 0 && rate <= 1, "rate is ", rate, ", expected 0 <= rate <= 1");
  SampleRelationsParams params;
  params.rng = flat<int64_t>(rng, "rng", 2);
  params.stream = stream;
  params.num_edges = rel.numel();
  params.rel = flat<int32_t>(rel, "rel", params.num_edges);
  params.rank = flat<int32_t>(rank, "rank", params.num_edges);
  params.count = flat<int64_t>(count, "count", count.numel());
  params.rate = rate;
  Tensor out = make(rel, {params.num_edges}, ScalarType::Bool);
  params.out = static_cast<uint8_t*>(out.mutable_data_ptr());
  device.launch(launch_sample_relations, params);
  return out;
}

Tensor sample_edges(const Tensor& rng, int64_t n, int64_t k, int64_t stream) {
  const OnDevice device(rng, "rng");
  check_size("n", n, kMaxElements);
  check_size("k", k, n);
  SampleEdgesParams params;
  params.rng = flat<int64_t>(rng, "rng", 2);
  params.stream = stream;
  params.n = n;
  params.keep = k;
  Tensor out = make(rng, {n}, ScalarType::Bool);
  params.out = static_cast<uint8_t*>(out.mutable_data_ptr());
  device.launch(launch_sample_edges, params);
  return out;
}

Tensor random_permutation(const Tensor& rng, int64_t n, int64_t count, int64_t stream) {
  const OnDevice device(rng, "rng");
  check_size("n", n, kMaxElements);
  check_size("count", count, n);
  PermutationParams params;
  params.rng = flat<int64_t>(rng, "rng", 2);
  params.stream = stream;
  params.n = n;
  params.count = count;
  Tensor out = make(rng, {count}, ScalarType::Long);
  params.out = out.mutable_data_ptr<int64_t>();
  device.launch(launch_permutation, params);
  return out;
}

Tensor dropout_mask(const Tensor& rng, int64_t n, double p, int64_t stream) {
  const OnDevice device(rng, "rng");
  STD_TORCH_CHECK(n >= 0, "n is ", n, ", expected a count");
  STD_TORCH_CHECK(p >= 0 && p <= 1, "p is ", p, ", expected 0 <= p <= 1");
  DropoutMaskParams params;
  params.rng = flat<int64_t>(rng, "rng", 2);
  params.stream = stream;
  params.n = n;
  params.threshold = drop_threshold(p);
  Tensor out = make(rng, {n}, ScalarType::Bool);
  params.out = static_cast<uint8_t*>(out.mutable_data_ptr());
  device.launch(launch_dropout_mask, params);
  return out;
}

Tensor sample_negatives(
    const Tensor& rng, const Tensor& users, const Tensor& ptr, const Tensor& gap, int64_t num_items,
    int64_t stream) {
  const OnDevice device(users, "users");
  NegativesParams params;
  params.rng = flat<int64_t>(rng, "rng", 2);
  params.stream = stream;
  params.count = users.numel();
  params.num_users = ptr.numel() - 1;
  params.num_items = num_items;
  STD_TORCH_CHECK(
      params.count == 0 || params.num_users > 0, "users has ", params.count,
      " elements, but the graph has no users");
  params.user = flat<int64_t>(users, "users", params.count);
  params.ptr = flat<int64_t>(ptr, "ptr", params.num_users + 1);
  params.gap = flat<int32_t>(gap, "gap", gap.numel());
  Tensor out = make(users, {params.count}, ScalarType::Long);
  params.out = out.mutable_data_ptr<int64_t>();
  device.launch(launch_negatives, params);
  return out;
}

}  // namespace
}  // namespace kgrec::cuda

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CUDA, m) {
  m.impl("sample_edges_per_relation", TORCH_BOX(&kgrec::cuda::sample_edges_per_relation));
  m.impl("sample_edges", TORCH_BOX(&kgrec::cuda::sample_edges));
  m.impl("random_permutation", TORCH_BOX(&kgrec::cuda::random_permutation));
  m.impl("dropout_mask", TORCH_BOX(&kgrec::cuda::dropout_mask));
  m.impl("sample_negatives", TORCH_BOX(&kgrec::cuda::sample_negatives));
}
