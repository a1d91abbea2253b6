// How kernels go over segments: the places of a segment or of its part in a chunk, and the lanes
// that share it, each with a unit of V elements that are loaded at once.
#pragma once

#include "cuda/device.cuh"
#include "cuda/segment.h"

namespace kgrec::cuda {

// Blocks of a multiprocessor at once, at least. Where nothing is said, the compiler may spill a few
// registers for another block.
constexpr int kSegmentBlocks = 4;
// Exponentials of doubles take more registers than that leaves.
template <class T>
constexpr int kSoftmaxBlocks = sizeof(acc_t<T>) == sizeof(double) ? 2 : kSegmentBlocks;

template <class A, int V>
struct Unit {
  A data[V];
  KGREC_DEVICE A& operator[](int i) { return data[i]; }
  KGREC_DEVICE const A& operator[](int i) const { return data[i]; }
};

template <int V, class A>
KGREC_DEVICE Unit<A, V> filled(A value) {
  Unit<A, V> unit;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    unit[i] = value;
  }
  return unit;
}

// With V > 1 whole vectors, at a multiple of 16 bytes.
template <int V, class T>
KGREC_DEVICE Unit<acc_t<T>, V> load_unit(const T* p KGREC_AT_CALLER) {
  Unit<acc_t<T>, V> unit;
  if constexpr (V == 1) {
    unit[0] = widen(load(p KGREC_PASS_CALLER));
  } else {
    constexpr int kSize = Vec<T>::kSize;
#pragma unroll
    for (int v = 0; v < V; v += kSize) {
      const Wide<T> wide = load_wide(p + v KGREC_PASS_CALLER);
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        unit[v + i] = wide[i];
      }
    }
  }
  return unit;
}

template <int V, class T>
KGREC_DEVICE void store_unit(T* p, const Unit<acc_t<T>, V>& unit KGREC_AT_CALLER) {
  if constexpr (V == 1) {
    store(p, narrow<T>(unit[0]) KGREC_PASS_CALLER);
  } else {
    constexpr int kSize = Vec<T>::kSize;
#pragma unroll
    for (int v = 0; v < V; v += kSize) {
      Wide<T> wide;
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        wide[i] = unit[v + i];
      }
      store_wide(p + v, wide KGREC_PASS_CALLER);
    }
  }
}

// -- Segments and chunks ---------------------------------------------------------------------

// Places [begin, end).
struct Stretch {
  int64_t begin, end;
  KGREC_DEVICE int64_t size() const { return end - begin; }
};

KGREC_DEVICE Stretch places_of(const SegmentParams& p, int64_t segment) {
  const int64_t begin = min(max(load(p.ptr + segment), int64_t{0}), p.rows);
  return {begin, min(max(load(p.ptr + segment + 1), begin), p.rows)};
}

// The last segment that begins at or before a place. There is at least one segment.
KGREC_DEVICE int64_t segment_at(const SegmentParams& p, int64_t place) {
  int64_t low = 0, high = p.num_segments - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (load(p.ptr + middle) <= place) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// The segment of a row, -1 where there is none.
KGREC_DEVICE int64_t segment_of_row(const SegmentParams& p, int64_t row) {
  if (p.index != nullptr) {
    const int64_t segment = load(p.index + row);
    return segment >= 0 && segment < p.num_segments ? segment : -1;
  }
  if (p.num_segments == 0) {
    return -1;
  }
  const int64_t segment = segment_at(p, row);
  const Stretch places = places_of(p, segment);
  return row >= places.begin && row < places.end ? segment : -1;
}

KGREC_DEVICE bool is_long(const Stretch& places) {
  return places.size() > kChunkPlaces;
}

// The part in this chunk of the long segment that its first place belongs to (slot 0), or that
// begins later (slot 1); nothing where there is none.
KGREC_DEVICE Stretch long_part(const SegmentParams& p, int64_t chunk, int slot) {
  const int64_t first = chunk * kChunkPlaces;
  const int64_t end = min(first + kChunkPlaces, p.rows);
  const Stretch places = places_of(p, segment_at(p, slot == 0 ? first : end - 1));
  if (!is_long(places) || (slot == 1 && places.begin <= first)) {
    return {first, first};
  }
  return {max(places.begin, first), min(places.end, end)};
}

// f(slots) for the partial sums of a long segment, in order, taken by the lanes in turns: their
// numbers in a batch.
template <class L, class F>
KGREC_DEVICE void for_partials(const Stretch& places, const L& lanes, F&& f) {
  const int64_t first = places.begin / kChunkPlaces;
  const int64_t last = (places.end - 1) / kChunkPlaces;
  for (int64_t chunk = first + lanes.row_lane; chunk <= last; chunk += lanes.row_lanes) {
    f(2 * chunk + (chunk * kChunkPlaces < places.begin ? 1 : 0));
  }
}

// -- Groups of lanes -------------------------------------------------------------------------

struct SegmentLanes {
  int64_t column;  // first of this lane's unit
  bool inside;     // whether there is such a column
  int row_lane, row_lanes, col_lanes;
  unsigned mask;  // of the group

  KGREC_DEVICE bool writes() const { return inside && row_lane == 0; }
};

// f(item, lanes) for the items of this group, once for every tile of columns.
template <int V, class F>
KGREC_DEVICE void for_items(const SegmentParams& p, int64_t items, int row_lanes, F&& f) {
  const int col_lanes = p.col_lanes;
  const int group_lanes = row_lanes * col_lanes, groups = kWarp / group_lanes;
  const int lane = lane_of_warp(), in_group = lane % group_lanes;
  const int64_t tile_width = int64_t{col_lanes} * V;
  const int64_t tiles = (p.width + tile_width - 1) / tile_width;
  SegmentLanes lanes;
  lanes.row_lane = in_group / col_lanes;
  lanes.row_lanes = row_lanes;
  lanes.col_lanes = col_lanes;
  lanes.mask = group_mask(lane, group_lanes);
  const int64_t first = warp_of_grid() * groups + lane / group_lanes;
  for (int64_t work = first; work < items * tiles; work += warps_in_grid() * groups) {
    lanes.column = work % tiles * tile_width + in_group % col_lanes * V;
    lanes.inside = lanes.column < p.width;
    f(work / tiles, lanes);
  }
}

// Over the rows of a group, for every column; the same bits in all of its lanes.
template <class A, int V>
KGREC_DEVICE void add_over_rows(Unit<A, V>& x, const SegmentLanes& lanes) {
  for (int offset = 1; offset < lanes.row_lanes; offset *= 2) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      x[i] += __shfl_xor_sync(lanes.mask, x[i], offset * lanes.col_lanes);
    }
  }
}

template <class A, int V>
KGREC_DEVICE void max_over_rows(Unit<A, V>& x, const SegmentLanes& lanes) {
  for (int offset = 1; offset < lanes.row_lanes; offset *= 2) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const A other = __shfl_xor_sync(lanes.mask, x[i], offset * lanes.col_lanes);
      x[i] = other > x[i] ? other : x[i];
    }
  }
}

// f(element number in src of the lane's unit) for the places of a stretch, in turns.
template <class F>
KGREC_DEVICE void for_places(
    const SegmentParams& p, int64_t batch, const Stretch& places, const SegmentLanes& lanes,
    F&& f) {
  if (!lanes.inside) {
    return;
  }
#pragma unroll 4
  for (int64_t place = places.begin + lanes.row_lane; place < places.end;
       place += lanes.row_lanes) {
    const int64_t row = p.perm != nullptr ? load(p.perm + place) : place;
    f((batch * p.rows + row) * p.width + lanes.column);
  }
}

}  // namespace kgrec::cuda
