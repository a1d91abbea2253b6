#include "cuda/random.cuh"

#include "entry.h"

KGREC_ENTRY(random_bits) {
  kgrec::cuda::RandomBitsParams p;
  p.rng = args.in<int64_t>("rng");
  p.stream = args.integer("stream");
  p.n = args.size("out");
  p.out = args.out<int64_t>("out");
  kgrec::cuda::launches_random_bits(p, args.launcher);
}
