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

template <class T, int kWidth, int kBytes>
struct LaneColumns<T, RowShape<T, kWidth, kBytes>> {
  using S = RowShape<T, kWidth, kBytes>;
  static constexpr int kLanes = S::kLanes;
  static constexpr int kVectors = S::kVectors;
  static constexpr int kSize = S::kSize;

  int lane;

  KGREC_DEVICE LaneColumns(int lane_of_group, int64_t, int64_t) : lane(lane_of_group) {}

  static KGREC_DEVICE int64_t next_slice(int64_t) { return kWidth; }
  KGREC_DEVICE int64_t column(int v) const { return (v * kLanes + lane) * kSize; }

  // E is T or the type of its sums. All lanes of a group come together.
  template <class E, class A>
  KGREC_DEVICE void read(const E* row, int v, A* values) const {
    if constexpr (kSize <= Vec<E>::kSize) {
      const Vec<E, kSize> part = load_elements<kSize>(row + column(v));
#pragma unroll
      for (int k = 0; k < kSize; ++k) {
        values[k] = widen(part[k]);
      }
    } else {
      // Two vectors a lane. Both lanes of a pair load next to each other, and hand over one.
      const E* pair = row + pair_column(v);
      const Vec<E> first = load_vec(pair), second = load_vec(pair + kSize);
#pragma unroll
      for (int k = 0; k < kHalf; ++k) {
        const E other = __shfl_xor_sync(pair_mask(), odd() ? first[k] : second[k], 1);
        values[k] = odd() ? other : first[k];
        values[kHalf + k] = odd() ? second[k] : other;
      }
    }
  }
  template <class E, class A>
  KGREC_DEVICE void write(E* row, int v, const A* values) const {
    if constexpr (kSize <= Vec<E>::kSize) {
      Vec<E, kSize> part;
#pragma unroll
      for (int k = 0; k < kSize; ++k) {
        part[k] = narrow<E>(values[k]);
      }
      store_vec(row + column(v), part);
    } else {
      Vec<E> first, second;
#pragma unroll
      for (int k = 0; k < kHalf; ++k) {
        const E other = __shfl_xor_sync(pair_mask(), odd() ? values[k] : values[kHalf + k], 1);
        first[k] = odd() ? other : values[k];
        second[k] = odd() ? values[kHalf + k] : other;
      }
      E* pair = row + pair_column(v);
      store_vec(pair, first);
      store_vec(pair + kSize, second);
    }
  }

 private:
  static constexpr int kHalf = kSize / 2;

  KGREC_DEVICE bool odd() const { return lane % 2 != 0; }
  KGREC_DEVICE int64_t pair_column(int v) const {
    return (v * kLanes + lane / 2 * 2) * kSize + lane % 2 * kHalf;
  }
  static KGREC_DEVICE unsigned pair_mask() { return group_mask(lane_of_warp(), 2); }
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

// Whether a lane has few columns of a row: then more warps fit, which hide the wait for memory.
template <class T, class S>
constexpr bool kFewColumns = false;
template <class T, int kWidth, int kBytes>
constexpr bool kFewColumns<T, RowShape<T, kWidth, kBytes>> =
    LaneColumns<T, RowShape<T, kWidth, kBytes>>::kVectors *
            LaneColumns<T, RowShape<T, kWidth, kBytes>>::kSize * sizeof(acc_t<T>) <=
        16 &&
    sizeof(acc_t<T>) == 4;

template <class C, class A>
struct LaneValues {
  A data[C::kVectors][C::kSize];
  KGREC_DEVICE A* operator[](int v) { return data[v]; }
  KGREC_DEVICE const A* operator[](int v) const { return data[v]; }
};

template <class T, class C>
KGREC_DEVICE LaneValues<C, acc_t<T>> lane_values(const C& columns, const T* row) {
  LaneValues<C, acc_t<T>> values;
#pragma unroll
  for (int v = 0; v < C::kVectors; ++v) {
    columns.read(row, v, values[v]);
  }
  return values;
}

template <class E, class C, class A>
KGREC_DEVICE void write_lanes(const C& columns, E* row, const LaneValues<C, A>& values) {
#pragma unroll
  for (int v = 0; v < C::kVectors; ++v) {
    columns.write(row, v, values[v]);
  }
}

// -- Edges -----------------------------------------------------------------------------------

// What a group of lanes has of a row: all of a short one, its part of a long one or of a chunk.
struct Share {
  int64_t row, begin, end;
  int64_t row_begin, row_end;  // all edges of the row, where it is not cut
  int64_t chunk;               // -1 where the row is not cut
  bool together;               // the groups of the warp share the row
  int group, lane;
  unsigned mask;  // of the group in the warp
};

// A stretch of each bin.
struct WorkRange {
  int64_t short_begin, short_end, long_begin, long_end, chunk_begin, chunk_end;
};

KGREC_HOST_DEVICE inline WorkRange all_work(const RowPlan& plan) {
  return {0, plan.num_short, 0, plan.num_long, 0, plan.num_chunks};
}

// Items of work, each of which occupies a warp. Long work comes first.
template <int kLanes>
KGREC_HOST_DEVICE int64_t items_of(const WorkRange& range) {
  constexpr int kGroups = kWarp / kLanes;
  return range.chunk_end - range.chunk_begin + range.long_end - range.long_begin +
         (range.short_end - range.short_begin + kGroups - 1) / kGroups;
}

// The share of this group in an item; false where the item has fewer rows than the warp groups.
template <int kLanes>
KGREC_DEVICE bool take_share(
    const OrderView& order, const RowPlan& plan, const WorkRange& range, int64_t item,
    Share& share) {
  constexpr int kGroups = kWarp / kLanes;
  const int lane = lane_of_warp();
  share.group = lane / kLanes;
  share.lane = lane % kLanes;
  share.mask = group_mask(lane, kLanes);
  share.row = -1;
  share.begin = share.end = share.row_begin = share.row_end = 0;
  const int64_t chunks = range.chunk_end - range.chunk_begin;
  const int64_t shared = chunks + range.long_end - range.long_begin;
  share.together = item < shared;
  share.chunk = item < chunks ? range.chunk_begin + item : -1;
  if (share.chunk >= 0) {
    const int32_t* chunk = plan.chunk + 3 * share.chunk;
    share.row = load(chunk);
    share.begin = load(chunk + 1);
    share.end = load(chunk + 2);
  } else {
    const int64_t number = range.short_begin + (item - shared) * kGroups + share.group;
    if (!share.together && number >= range.short_end) {
      return false;
    }
    share.row = share.together ? load(plan.long_row + (range.long_begin + item - chunks))
                               : load(plan.short_row + number);
    share.begin = share.row_begin = load(order.ptr + share.row);
    share.end = share.row_end = load(order.ptr + share.row + 1);
  }
  if (share.together) {
    // Neighbouring edges to one group: fewer runs are cut than with edges in turns.
    const int64_t begin = share.begin, size = share.end - begin;
    share.begin = begin + size * share.group / kGroups;
    share.end = begin + size * (share.group + 1) / kGroups;
  }
  return true;
}

// f(share) for the shares of this group. Where groups are together, all of them are called, some
// with no edge.
template <int kLanes, class F>
KGREC_DEVICE void for_shares(const OrderView& order, const RowPlan& plan, F&& f) {
  const WorkRange range = all_work(plan);
  const int64_t items = items_of<kLanes>(range);
  for (int64_t item = warp_of_grid(); item < items; item += warps_in_grid()) {
    Share share;
    if (take_share<kLanes>(order, plan, range, item, share)) {
      f(share);
    }
  }
}

// The same in step, for kernels whose groups meet at each edge: f(share, steps) is called by all
// lanes of the warp, those without a row too (row -1, no edge); steps is the largest number of
// edges among its groups. For the items first, first + stride, ...
template <int kLanes, class F>
KGREC_DEVICE void for_shares_in_step(
    const OrderView& order, const RowPlan& plan, const WorkRange& range, int64_t first,
    int64_t stride, F&& f) {
  const int64_t items = items_of<kLanes>(range);
  for (int64_t item = first; item < items; item += stride) {
    Share share;
    take_share<kLanes>(order, plan, range, item, share);
    int steps = static_cast<int>(share.end - share.begin);
#pragma unroll
    for (int offset = kLanes; offset < kWarp; offset *= 2) {
      const int other = __shfl_xor_sync(kFullMask, steps, offset);
      steps = other > steps ? other : steps;
    }
    f(share, steps);
  }
}

// Rows of edges that a group has on the way at once: while it waits for one, the other comes too.
// More of them would take registers, and so warps, from the multiprocessor.
template <class C, class A>
constexpr int kEdgesAtOnce = sizeof(LaneValues<C, A>) <= (sizeof(A) == 8 ? 16 : 32) ? 2 : 1;

// Bit j: whether `kept` is true in lane j of the group. `mask` names the lanes that make the call.
template <int kLanes>
KGREC_DEVICE unsigned kept_lanes(unsigned mask, bool kept) {
  const unsigned bits = __ballot_sync(mask, kept) >> (lane_of_warp() & ~(kLanes - 1));
  return bits & (kFullMask >> (kWarp - kLanes));
}

// Takes the first lane out of `left`; -1 where none is left.
KGREC_DEVICE int take_lane(unsigned& left) {
  const int lane = __ffs(static_cast<int>(left)) - 1;
  left &= left - 1;
  return lane;
}

// What a lane has looked up of an edge of its group's share, for all of them to see.
struct EdgeIds {
  int32_t idx = -1;  // -1 where it is masked or there is none
  int32_t rel = -1;  // -1 where there is none
};

KGREC_DEVICE EdgeIds ids_of(const OrderView& order, int64_t e, int64_t end) {
  EdgeIds ids;
  if (e < end) {
    // All at once, masked or not: to wait for the mask first would take as long again.
    ids.rel = load(order.rel + e);
    const int32_t idx = load(order.idx + e);
    ids.idx = order.mask == nullptr || load(order.mask + e) != 0 ? idx : -1;
  }
  return ids;
}

template <int kLanes>
KGREC_DEVICE EdgeIds ids_from(const EdgeIds& mine, int lane) {
  EdgeIds ids;
  ids.idx = __shfl_sync(kFullMask, mine.idx, lane, kLanes);
  ids.rel = __shfl_sync(kFullMask, mine.rel, lane, kLanes);
  return ids;
}

template <class C>
Geometry grid_for_shares(const RowPlan& plan) {
  return grid_for(items_of<C::kLanes>(all_work(plan)), kBlockThreads / kWarp);
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

// Of all that a lane has of a row.
template <class C, class A>
KGREC_DEVICE void sum_groups(LaneValues<C, A>& values) {
#pragma unroll
  for (int v = 0; v < C::kVectors; ++v) {
#pragma unroll
    for (int i = 0; i < C::kSize; ++i) {
      values[v][i] = sum_groups<C::kLanes>(values[v][i]);
    }
  }
}

// The sum of the rows begin, begin + 1 ... end - 1 of `work`, in the columns of a lane; row_of(i)
// is the number of the one that stands for i.
template <class C, class A, class F>
KGREC_DEVICE LaneValues<C, A> sum_rows(
    const C& columns, const A* work, int64_t width, int64_t begin, int64_t end, F&& row_of) {
  LaneValues<C, A> sum{};
#pragma unroll 4
  for (int64_t i = begin; i < end; ++i) {
    const A* row = work + row_of(i) * width;
#pragma unroll
    for (int v = 0; v < C::kVectors; ++v) {
      A part[C::kSize];
      columns.read(row, v, part);
#pragma unroll
      for (int k = 0; k < C::kSize; ++k) {
        sum[v][k] += part[k];
      }
    }
  }
  return sum;
}

template <class T>
KGREC_DEVICE const T* matrix_row(const Matrix& x, int64_t row) {
  return static_cast<const T*>(x.data) + row * x.stride;
}

}  // namespace kgrec::cuda
