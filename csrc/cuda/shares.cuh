// How a row pass is shared out among groups of lanes, after kgrec_fast/cuda_plan.py: which edges a
// group takes, which columns a lane, and how the groups of a warp meet.
#pragma once

#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace kgrec::cuda {

// On a multiprocessor, at least. Where nothing is said, the compiler may spill a few registers for
// another block.
constexpr int kBlocksAtOnce = 2;

// -- Columns ---------------------------------------------------------------------------------

// The columns of a lane: kVectors times kSize neighbours. A wider row is gone over in slices.
template <class T, class S>
struct LaneColumns;

template <class T, int kWidth>
struct LaneColumns<T, RowShape<T, kWidth>> {
  using S = RowShape<T, kWidth>;
  static constexpr int kLanes = S::kLanes;
  static constexpr int kVectors = S::kVectors;
  static constexpr int kSize = S::kSize;

  int lane;

  KGREC_DEVICE LaneColumns(int lane_of_group, int64_t, int64_t) : lane(lane_of_group) {}

  static KGREC_DEVICE int64_t next_slice(int64_t) { return kWidth; }
  KGREC_DEVICE int64_t column(int v) const { return (v * kLanes + lane) * kSize; }

  // E is T or the type of its sums, which may take several vectors.
  template <class E, class A>
  KGREC_DEVICE void read(const E* row, int v, A* values) const {
#pragma unroll
    for (int i = 0; i < kSize; i += Vec<E>::kSize) {
      const Vec<E> part = load_vec(row + column(v) + i);
#pragma unroll
      for (int k = 0; k < Vec<E>::kSize; ++k) {
        values[i + k] = widen(part[k]);
      }
    }
  }
  template <class E, class A>
  KGREC_DEVICE void write(E* row, int v, const A* values) const {
#pragma unroll
    for (int i = 0; i < kSize; i += Vec<E>::kSize) {
      Vec<E> part;
#pragma unroll
      for (int k = 0; k < Vec<E>::kSize; ++k) {
        part[k] = narrow<E>(values[i + k]);
      }
      store_vec(row + column(v) + i, part);
    }
  }
};

template <class T>
struct LaneColumns<T, AnyShape> {
  static constexpr int kLanes = AnyShape::kLanes;
  static constexpr int kVectors = 4;
  static constexpr int kSize = 1;

  int lane;
  int64_t first, width;

  KGREC_DEVICE LaneColumns(int lane_of_group, int64_t first_column, int64_t num_columns)
      : lane(lane_of_group), first(first_column), width(num_columns) {}

  static KGREC_DEVICE int64_t next_slice(int64_t slice) { return slice + kLanes * kVectors; }
  // The last one stands for those that are not there.
  KGREC_DEVICE int64_t column(int v) const { return inside(v) ? at(v) : width - 1; }

  template <class E, class A>
  KGREC_DEVICE void read(const E* row, int v, A* values) const {
    values[0] = inside(v) ? widen(load(row + at(v))) : A(0);
  }
  template <class E, class A>
  KGREC_DEVICE void write(E* row, int v, const A* values) const {
    if (inside(v)) {
      store(row + at(v), narrow<E>(values[0]));
    }
  }

 private:
  KGREC_DEVICE int64_t at(int v) const { return first + v * kLanes + lane; }
  KGREC_DEVICE bool inside(int v) const { return at(v) < width; }
};

template <class C, class A>
struct LaneValues {
  A data[C::kVectors][C::kSize];
  KGREC_DEVICE A* operator[](int v) { return data[v]; }
  KGREC_DEVICE const A* operator[](int v) const { return data[v]; }
};

// -- Edges -----------------------------------------------------------------------------------

// What a group of lanes has of a row: all of a short one, its part of a long one or of a chunk.
struct Share {
  int64_t row, begin, end;
  int64_t chunk;  // -1 where the row is not cut
  bool together;  // the groups of the warp share the row
  int group, lane;
  unsigned mask;  // of the group in the warp
};

// f(share) for the shares of this group. Long work comes first. Where groups are together, all of
// them are called, some with no edge.
template <int kLanes, class F>
KGREC_DEVICE void for_shares(const OrderView& order, const RowPlan& plan, F&& f) {
  constexpr int kGroups = kWarp / kLanes;
  const int lane = lane_of_warp();
  Share share{};
  share.group = lane / kLanes;
  share.lane = lane % kLanes;
  share.mask = group_mask(lane, kLanes);
  const int64_t shared = plan.num_chunks + plan.num_long;
  const int64_t items = shared + (plan.num_short + kGroups - 1) / kGroups;
  for (int64_t item = warp_of_grid(); item < items; item += warps_in_grid()) {
    share.together = item < shared;
    share.chunk = item < plan.num_chunks ? item : -1;
    if (share.chunk >= 0) {
      const int32_t* chunk = plan.chunk + 3 * item;
      share.row = load(chunk);
      share.begin = load(chunk + 1);
      share.end = load(chunk + 2);
    } else {
      const int64_t number = (item - shared) * kGroups + share.group;
      if (!share.together && number >= plan.num_short) {
        continue;
      }
      share.row = share.together ? load(plan.long_row + (item - plan.num_chunks))
                                 : load(plan.short_row + number);
      share.begin = load(order.ptr + share.row);
      share.end = load(order.ptr + share.row + 1);
    }
    if (share.together) {
      // Neighbouring edges to one group: fewer runs are cut than with edges in turns.
      const int64_t begin = share.begin, size = share.end - begin;
      share.begin = begin + size * share.group / kGroups;
      share.end = begin + size * (share.group + 1) / kGroups;
    }
    f(share);
  }
}

template <class C>
Geometry grid_for_shares(const RowPlan& plan) {
  constexpr int kGroups = kWarp / C::kLanes;
  const int64_t items = plan.num_chunks + plan.num_long + (plan.num_short + kGroups - 1) / kGroups;
  return grid_for(items, kBlockThreads / kWarp);
}

// Sum over the groups of the warp, which all its lanes call: of one number a lane.
template <int kLanes, class A>
KGREC_DEVICE A sum_groups(A x) {
#pragma unroll
  for (int offset = kLanes; offset < kWarp; offset *= 2) {
    x += __shfl_xor_sync(kFullMask, x, offset);
  }
  return x;
}

template <class T>
KGREC_DEVICE const T* matrix_row(const Matrix& x, int64_t row) {
  return static_cast<const T*>(x.data) + row * x.stride;
}

}  // namespace kgrec::cuda
