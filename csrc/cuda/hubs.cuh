// The second half of a row pass: who adds up the chunks of each row that is cut into some, and
// where groups of lanes leave what they have for one another.
#pragma once

#include "cuda/shares.cuh"

namespace kgrec::cuda {

// The chunks of a hub that a group adds up; the groups of its team have the others.
struct HubShare {
  int64_t row, begin, end;
  int group, groups;  // number in the team, and of how many
  bool block;         // whether the team is the block, or the warp

  // Until all of the team have come.
  KGREC_DEVICE void meet() const {
    if (block) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }
};

// f(share) for all hubs: a warp takes one of few chunks, and a block all others. Groups have
// neighbouring chunks. All lanes of a team make the call.
template <int kLanes, class F>
KGREC_DEVICE void for_hubs(const RowPlan& plan, F&& f) {
  constexpr int kWarps = kBlockThreads / kWarp;
  constexpr int64_t kChunksOfWarp = 64;
  for (int64_t first = int64_t{blockIdx.x} * kWarps; first < plan.num_hubs;
       first += int64_t{gridDim.x} * kWarps) {
    for (int i = 0; i < kWarps && first + i < plan.num_hubs; ++i) {
      const int32_t* hub = plan.hub + 3 * (first + i);
      const int64_t begin = load(hub + 1), size = load(hub + 2) - begin;
      HubShare share;
      share.row = load(hub);
      share.block = size > kChunksOfWarp;
      if (!share.block && warp_of_block() != i) {
        continue;
      }
      const int lane = share.block ? static_cast<int>(threadIdx.x) : lane_of_warp();
      share.group = lane / kLanes;
      share.groups = (share.block ? kBlockThreads : kWarp) / kLanes;
      share.begin = begin + size * share.group / share.groups;
      share.end = begin + size * (share.group + 1) / share.groups;
      f(share);
    }
  }
}

inline Geometry grid_for_hubs(const RowPlan& plan) {
  return grid_for(plan.num_hubs, kBlockThreads / kWarp);
}

// What the lanes of a group have of a row, in shared memory: value i of vector v of a lane.
template <class C>
constexpr int kPartSize = C::kLanes * C::kVectors * C::kSize;

template <class C>
KGREC_DEVICE int place_in_part(int lane, int v, int i) {
  return (v * C::kSize + i) * C::kLanes + lane;
}

template <class C, class A>
KGREC_DEVICE void put_part(A* part, int lane, const LaneValues<C, A>& values) {
#pragma unroll
  for (int v = 0; v < C::kVectors; ++v) {
#pragma unroll
    for (int i = 0; i < C::kSize; ++i) {
      store(part + place_in_part<C>(lane, v, i), values[v][i]);
    }
  }
}

}  // namespace kgrec::cuda
