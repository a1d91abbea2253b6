// A few lanes add up the scores of a short column, a warp those of a long one or of a chunk; the
// chunks of a hub are added up by a second kernel.
#pragma once

#include "cuda/edge_score_means.h"
#include "cuda/shares.cuh"

namespace kgrec::cuda {

struct ScoreLanes {
  static constexpr int kLanes = 4;
};

template <class T>
KGREC_DEVICE void write_mean(const EdgeScoreMeansParams& p, int64_t column, T total, int count) {
  store(static_cast<T*>(p.out) + column, count > 0 ? total / T(count) : T(0));
}

template <class T>
__global__ void __launch_bounds__(kBlockThreads, kBlocksAtOnce)
    edge_score_means_kernel(const EdgeScoreMeansParams p) {
  constexpr int kLanes = ScoreLanes::kLanes;
  const T* scores = static_cast<const T*>(p.score);
  for_shares<kLanes>(p.order, p.plan, [&](const Share& share) {
    if (share.row >= p.num_items) {
      return;  // all lanes that share the column do
    }
    T total = 0;
    int32_t count = 0;
#pragma unroll 4
    for (int64_t e = share.begin + share.lane; e < share.end; e += kLanes) {
      const int32_t place = load(p.order.pos + e);
      if (p.row_mask == nullptr || load(p.row_mask + place) != 0) {
        total += load(scores + place);
        ++count;
      }
    }
    const int lanes = share.together ? kWarp : kLanes;
    const unsigned mask = share.together ? kFullMask : share.mask;
    total = group_sum(total, lanes, mask);
    count = group_sum(count, lanes, mask);
    if (lane_of_warp() % lanes != 0) {
      return;
    }
    if (share.chunk < 0) {
      write_mean(p, share.row, total, count);
    } else {
      store(static_cast<T*>(p.partial) + share.chunk, total);
      store(p.partial_count + share.chunk, count);
    }
  });
}

// A warp a hub.
template <class T>
__global__ void __launch_bounds__(kBlockThreads, kBlocksAtOnce)
    edge_score_means_hub_kernel(const EdgeScoreMeansParams p) {
  const T* partial = static_cast<const T*>(p.partial);
  for (int64_t i = warp_of_grid(); i < p.plan.num_hubs; i += warps_in_grid()) {
    const int32_t* hub = p.plan.hub + 3 * i;
    const int32_t column = load(hub), begin = load(hub + 1), end = load(hub + 2);
    if (column >= p.num_items) {
      continue;
    }
    T total = 0;
    int32_t count = 0;
    for (int32_t chunk = begin + lane_of_warp(); chunk < end; chunk += kWarp) {
      total += load(partial + chunk);
      count += load(p.partial_count + chunk);
    }
    total = group_sum(total, kWarp, kFullMask);
    count = group_sum(count, kWarp, kFullMask);
    if (lane_of_warp() == 0) {
      write_mean(p, column, total, count);
    }
  }
}

template <class Run>
void launches_edge_score_means(const EdgeScoreMeansParams& p, Run&& run) {
  const auto typed = [&](auto element) {
    using T = decltype(element);
    run(edge_score_means_kernel<T>, grid_for_shares<ScoreLanes>(p.plan), p);
    run(edge_score_means_hub_kernel<T>, grid_for(p.plan.num_hubs, kBlockThreads / kWarp), p);
  };
  if (p.num_items > 0) {
    p.dtype == DType::f64 ? typed(double{}) : typed(float{});
  }
}

}  // namespace kgrec::cuda
