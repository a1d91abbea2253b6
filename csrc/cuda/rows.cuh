// A group of lanes for each row of a matrix.
#pragma once

#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace kgrec::cuda {

// The lanes of a group: those that share a row.
struct GroupLanes {
  int lane;       // in the group
  unsigned mask;  // of the group in the warp
};

template <class S>
KGREC_DEVICE GroupLanes group_lanes() {
  const int lane = lane_of_warp();
  return {lane % S::kLanes, group_mask(lane, S::kLanes)};
}

// f(row, lanes) for the rows of this group.
template <class S, class F>
KGREC_DEVICE void for_rows(int64_t rows, F&& f) {
  constexpr int kGroups = kWarp / S::kLanes;
  const int lane = lane_of_warp();
  const GroupLanes lanes = group_lanes<S>();
  const int64_t first = warp_of_grid() * kGroups + lane / S::kLanes;
  for (int64_t row = first; row < rows; row += warps_in_grid() * kGroups) {
    f(row, lanes);
  }
}

}  // namespace kgrec::cuda
