#include "cpu/sampling.h"

#include "cpu/binding.h"

#define KGREC_KERNELS "cpu/sampling_kernels.h"
#include "cpu/foreach_isa.h"

namespace kgrec::cpu {
namespace {

constexpr int64_t kMaxElements = (int64_t(1) << 31) - 1;
constexpr int64_t kGrain = 1 << 12;      // elements to permute that are worth a thread
constexpr int64_t kDrawGrain = 1 << 15;  // elements to draw

void draw_keys(const Tensor& rng, int64_t stream, uint32_t* keys) {
  const PhiloxDraw draw = draw_of(rng, stream);
  for (int block = 0; block < kFeistelBlocks; ++block) {
    philox_block(draw, block, keys + block * kPhiloxWords);
  }
}

void check_size(const char* name, int64_t size, int64_t most) {
  STD_TORCH_CHECK(
      size >= 0 && size <= most, name, " is ", size, ", expected 0 <= ", name, " <= ", most);
}

Tensor sample_edges_per_relation(
    const Tensor& rng, const Tensor& rel, const Tensor& rank, const Tensor& count, double rate,
    int64_t stream) {
  STD_TORCH_CHECK(rate >= 0 && rate <= 1, "rate is ", rate, ", expected 0 <= rate <= 1");
  const int64_t edges = rel.numel(), relations = count.numel();
  SampleRelationsParams params;
  draw_keys(rng, stream, params.keys);
  const int64_t* counts = flat<int64_t>(count, "count", relations);
  std::vector<RelationShare> share(relations);
  torch::stable::parallel_for(0, relations, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      share[r].n = static_cast<uint32_t>(counts[r]);
      share[r].tweak = feistel_tweak(params.keys, static_cast<uint32_t>(r));
      share[r].keep = floor_share(rate, counts[r]);
    }
  });
  Tensor out = make(rel, {edges}, ScalarType::Bool);
  params.share = share.data();
  params.rel = flat<int32_t>(rel, "rel", edges);
  params.rank = flat<int32_t>(rank, "rank", edges);
  params.out = static_cast<uint8_t*>(out.mutable_data_ptr());
  torch::stable::parallel_for(0, edges, kGrain, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(sample_relations_range, params, begin, end);
  });
  return out;
}

Tensor sample_edges(const Tensor& rng, int64_t n, int64_t k, int64_t stream) {
  check_size("n", n, kMaxElements);
  check_size("k", k, n);
  SampleEdgesParams params;
  draw_keys(rng, stream, params.keys);
  Tensor out = make(rng, {n}, ScalarType::Bool);
  params.n = static_cast<uint32_t>(n);
  params.keep = static_cast<uint32_t>(k);
  params.out = static_cast<uint8_t*>(out.mutable_data_ptr());
  torch::stable::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(sample_edges_range, params, begin, end);
  });
  return out;
}

Tensor random_permutation(const Tensor& rng, int64_t n, int64_t count, int64_t stream) {
  check_size("n", n, kMaxElements);
  check_size("count", count, n);
  PermutationParams params;
  draw_keys(rng, stream, params.keys);
  Tensor out = make(rng, {count}, ScalarType::Long);
  params.n = static_cast<uint32_t>(n);
  params.out = out.mutable_data_ptr<int64_t>();
  torch::stable::parallel_for(0, count, kGrain, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(permutation_range, params, begin, end);
  });
  return out;
}

Tensor dropout_mask(const Tensor& rng, int64_t n, double p, int64_t stream) {
  STD_TORCH_CHECK(n >= 0, "n is ", n, ", expected a count");
  STD_TORCH_CHECK(p >= 0 && p <= 1, "p is ", p, ", expected 0 <= p <= 1");
  DropoutMaskParams params;
  params.draw = draw_of(rng, stream);
  params.threshold = drop_threshold(p);
  Tensor out = make(rng, {n}, ScalarType::Bool);
  params.out = static_cast<uint8_t*>(out.mutable_data_ptr());
  torch::stable::parallel_for(0, n, kDrawGrain, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(dropout_mask_range, params, begin, end);
  });
  return out;
}

Tensor sample_negatives(
    const Tensor& rng, const Tensor& users, const Tensor& ptr, const Tensor& gap, int64_t num_items,
    int64_t stream) {
  const int64_t count = users.numel(), num_users = ptr.numel() - 1;
  NegativesParams params;
  params.draw = draw_of(rng, stream);
  params.user = flat<int64_t>(users, "users", count);
  params.ptr = flat<int64_t>(ptr, "ptr", num_users + 1);
  params.gap = flat<int32_t>(gap, "gap", gap.numel());
  params.num_items = num_items;
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(
        params.user[i] >= 0 && params.user[i] < num_users, "users[", i, "] is ", params.user[i],
        ", expected 0 <= user < ", num_users);
  }
  Tensor out = make(users, {count}, ScalarType::Long);
  params.out = out.mutable_data_ptr<int64_t>();
  torch::stable::parallel_for(0, count, kGrain, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(negatives_range, params, begin, end);
  });
  return out;
}

}  // namespace
}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CPU, m) {
  m.impl("sample_edges_per_relation", TORCH_BOX(&kgrec::cpu::sample_edges_per_relation));
  m.impl("sample_edges", TORCH_BOX(&kgrec::cpu::sample_edges));
  m.impl("random_permutation", TORCH_BOX(&kgrec::cpu::random_permutation));
  m.impl("dropout_mask", TORCH_BOX(&kgrec::cpu::dropout_mask));
  m.impl("sample_negatives", TORCH_BOX(&kgrec::cpu::sample_negatives));
}
