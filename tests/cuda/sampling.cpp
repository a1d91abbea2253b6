#include "cuda/sampling.cuh"

#include "common/philox.h"
#include "entry.h"

KGREC_ENTRY(sample_edges_per_relation) {
  kgrec::cuda::SampleRelationsParams p;
  p.rng = args.in<int64_t>("rng");
  p.stream = args.integer("stream");
  p.num_edges = args.size("out");
  p.rel = args.in<int32_t>("rel");
  p.rank = args.in<int32_t>("rank");
  p.count = args.in<int64_t>("counts");
  p.rate = args.number("rate");
  p.out = args.out<uint8_t>("out");
  kgrec::cuda::launches_sample_relations(p, args.launcher);
}

KGREC_ENTRY(sample_edges) {
  kgrec::cuda::SampleEdgesParams p;
  p.rng = args.in<int64_t>("rng");
  p.stream = args.integer("stream");
  p.n = args.size("out");
  p.keep = args.integer("k");
  p.out = args.out<uint8_t>("out");
  kgrec::cuda::launches_sample_edges(p, args.launcher);
}

KGREC_ENTRY(random_permutation) {
  kgrec::cuda::PermutationParams p;
  p.rng = args.in<int64_t>("rng");
  p.stream = args.integer("stream");
  p.n = args.integer("n");
  p.count = args.size("out");
  p.out = args.out<int64_t>("out");
  kgrec::cuda::launches_permutation(p, args.launcher);
}

KGREC_ENTRY(dropout_mask) {
  kgrec::cuda::DropoutMaskParams p;
  p.rng = args.in<int64_t>("rng");
  p.stream = args.integer("stream");
  p.n = args.size("out");
  p.threshold = kgrec::drop_threshold(args.number("p"));
  p.out = args.out<uint8_t>("out");
  kgrec::cuda::launches_dropout_mask(p, args.launcher);
}

KGREC_ENTRY(sample_negatives) {
  kgrec::cuda::NegativesParams p;
  p.rng = args.in<int64_t>("rng");
  p.stream = args.integer("stream");
  p.user = args.in<int64_t>("users");
  p.ptr = args.in<int64_t>("ptr");
  p.gap = args.in<int32_t>("gap");
  p.num_users = args.size("ptr") - 1;
  p.num_items = args.integer("num_items");
  p.count = args.size("users");
  p.out = args.out<int64_t>("out");
  kgrec::cuda::launches_negatives(p, args.launcher);
}
