#include "cuda/selection.cuh"

#include "cuda/positions.cuh"
#include "entry.h"

using namespace kgrec::cuda;

KGREC_ENTRY(gumbel_noise) {
  GumbelParams p;
  p.rng = args.in<int64_t>("rng");
  p.stream = args.integer("stream");
  p.n = args.size("out");
  p.out = args.out<float>("out");
  launches_gumbel(p, args.launcher);
}

KGREC_ENTRY(topk_mask) {
  TopkParams p;
  p.dtype = args.dtype();
  p.n = args.size("values");
  p.values = args.in("values", p.dtype);
  p.mask = args.in_or_null<uint8_t>("mask");
  p.largest = args.integer("largest") != 0;
  p.k = args.integer("k");
  p.rate = args.number("rate");
  p.rng = args.in_or_null<int64_t>("rng");
  p.num_streams = static_cast<int>(args.integer("num_streams"));
  for (int s = 0; s < p.num_streams; ++s) {
    p.streams[s] = args.integer("stream" + std::to_string(s));
  }
  const int passes = key_passes(p.dtype) + id_passes(p.n);
  const int64_t keys = (p.n + kGroup - 1) / kGroup * kGroup;
  p.keys = p.dtype == kgrec::DType::f64 ? static_cast<void*>(args.workspace<uint64_t>("keys", keys))
                                        : args.workspace<uint32_t>("keys", keys);
  p.histograms = args.workspace<unsigned long long>("histograms", int64_t{passes} * kBins);
  p.states = args.workspace<SelectState>("states", passes);
  p.out = args.out<uint8_t>("out");
  launches_topk(p, args.launcher);
}

KGREC_ENTRY(mask_positions) {
  PositionsParams p;
  p.mask = args.in<uint8_t>("mask");
  p.n = args.size("mask");
  p.tiles = (p.n + kTileBits - 1) / kTileBits;
  p.first = args.workspace<int64_t>("first", p.tiles + 1);
  p.count = args.size("out");
  p.out = args.out<int64_t>("out");
  launches_positions(p, args.launcher);
}
