// A segment is summed by a group of lanes: some side by side in a row, some in different rows,
// whose sums are added by butterflies. The lengths of segments are not known to the host. Those of
// more than kChunkPlaces places are therefore summed in two steps, first within chunks of all
// places: a chunk meets at most two such segments, the one that holds its first place and the one
// that begins later and holds its last, and has a partial sum for either.
//
// What is done row by row takes a thread for a unit.
#pragma once

#include <type_traits>

#include "cuda/segment_lanes.cuh"
#include "cuda/softmax.cuh"

namespace kgrec::cuda {

// -- Sums ------------------------------------------------------------------------------------

// Of src, or of its products with grad where that is given.
template <class T, int V>
KGREC_DEVICE Unit<acc_t<T>, V> sum_of(
    const SegmentParams& p, int64_t batch, const Stretch& places, const SegmentLanes& lanes) {
  using A = acc_t<T>;
  Unit<A, V> sum = filled<V>(A(0));
  for_places(p, batch, places, lanes, [&](int64_t at) {
    Unit<A, V> x = load_unit<V>(static_cast<const T*>(p.src) + at);
    if (p.grad != nullptr) {
      const Unit<A, V> grad = load_unit<V>(static_cast<const T*>(p.grad) + at);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        x[i] *= grad[i];
      }
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      sum[i] += x[i];
    }
  });
  add_over_rows(sum, lanes);
  return sum;
}

template <class T, int V>
__global__ void __launch_bounds__(kBlockThreads, kSegmentBlocks)
    segment_sum_chunks_kernel(const SegmentParams p) {
  using A = acc_t<T>;
  const int64_t slots = 2 * p.chunks;
  for_items<V>(
      p, p.batches * slots, kWarp / p.col_lanes, [&](int64_t item, const SegmentLanes& lanes) {
        const int64_t slot = item % slots;
        const Stretch part = long_part(p, slot / 2, static_cast<int>(slot % 2));
        if (part.size() > 0) {
          const Unit<A, V> sum = sum_of<T, V>(p, item / slots, part, lanes);
          if (lanes.writes()) {
            store_unit<V>(static_cast<A*>(p.partial) + item * p.width + lanes.column, sum);
          }
        }
      });
}

template <class T, int V>
__global__ void __launch_bounds__(kBlockThreads, kSegmentBlocks)
    segment_sum_kernel(const SegmentParams p) {
  using A = acc_t<T>;
  const int64_t slots = 2 * p.chunks;
  const int64_t items = p.batches * p.num_segments;
  for_items<V>(p, items, p.row_lanes, [&](int64_t item, const SegmentLanes& lanes) {
    const int64_t batch = item / p.num_segments;
    const Stretch places = places_of(p, item % p.num_segments);
    Unit<A, V> sum = filled<V>(A(0));
    if (!is_long(places)) {
      sum = sum_of<T, V>(p, batch, places, lanes);
    } else {
      for_partials(places, lanes, [&](int64_t slot) {
        if (lanes.inside) {
          const int64_t at = (batch * slots + slot) * p.width + lanes.column;
          const Unit<A, V> x = load_unit<V>(static_cast<const A*>(p.partial) + at);
#pragma unroll
          for (int i = 0; i < V; ++i) {
            sum[i] += x[i];
          }
        }
      });
      add_over_rows(sum, lanes);
    }
    if (p.mean && places.size() > 1) {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        sum[i] /= A(places.size());
      }
    }
    if (lanes.writes()) {
      const int64_t at = item * p.width + lanes.column;
      if (p.total != nullptr) {
        store_unit<V>(static_cast<A*>(p.total) + at, sum);
      } else {
        store_unit<V>(static_cast<T*>(p.out) + at, sum);
      }
    }
  });
}

// -- Highest elements and sums of exponentials -----------------------------------------------

template <class A, int V>
struct Softmax {
  Unit<A, V> top, total;
};

template <class T, int V>
KGREC_DEVICE Softmax<acc_t<T>, V> softmax_of(
    const SegmentParams& p, const Stretch& places, const SegmentLanes& lanes) {
  using A = acc_t<T>;
  const T* src = static_cast<const T*>(p.src);
  Softmax<A, V> result{filled<V>(A(-INFINITY)), filled<V>(A(0))};
  for_places(p, 0, places, lanes, [&](int64_t at) {
    const Unit<A, V> x = load_unit<V>(src + at);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      result.top[i] = x[i] > result.top[i] ? x[i] : result.top[i];
    }
  });
  max_over_rows(result.top, lanes);
  for_places(p, 0, places, lanes, [&](int64_t at) {
    const Unit<A, V> x = load_unit<V>(src + at);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      result.total[i] += exp(x[i] - base_of(result.top[i]));
    }
  });
  add_over_rows(result.total, lanes);
  return result;
}

template <class T, int V>
__global__ void __launch_bounds__(kBlockThreads, kSoftmaxBlocks<T>)
    segment_softmax_chunks_kernel(const SegmentParams p) {
  using A = acc_t<T>;
  const int64_t slots = 2 * p.chunks;
  for_items<V>(p, slots, kWarp / p.col_lanes, [&](int64_t slot, const SegmentLanes& lanes) {
    const Stretch part = long_part(p, slot / 2, static_cast<int>(slot % 2));
    if (part.size() > 0) {
      const Softmax<A, V> result = softmax_of<T, V>(p, part, lanes);
      if (lanes.writes()) {
        const int64_t at = slot * p.width + lanes.column;
        store_unit<V>(static_cast<A*>(p.partial_top) + at, result.top);
        store_unit<V>(static_cast<A*>(p.partial) + at, result.total);
      }
    }
  });
}

template <class T, int V>
KGREC_DEVICE Softmax<acc_t<T>, V> softmax_of_long(
    const SegmentParams& p, const Stretch& places, const SegmentLanes& lanes) {
  using A = acc_t<T>;
  const A* tops = static_cast<const A*>(p.partial_top) + lanes.column;
  const A* totals = static_cast<const A*>(p.partial) + lanes.column;
  Softmax<A, V> result{filled<V>(A(-INFINITY)), filled<V>(A(0))};
  for_partials(places, lanes, [&](int64_t slot) {
    if (lanes.inside) {
      const Unit<A, V> top = load_unit<V>(tops + slot * p.width);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        result.top[i] = top[i] > result.top[i] ? top[i] : result.top[i];
      }
    }
  });
  max_over_rows(result.top, lanes);
  for_partials(places, lanes, [&](int64_t slot) {
    if (lanes.inside) {
      const Unit<A, V> top = load_unit<V>(tops + slot * p.width);
      const Unit<A, V> total = load_unit<V>(totals + slot * p.width);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        result.total[i] += rebase(total[i], top[i], result.top[i]);
      }
    }
  });
  add_over_rows(result.total, lanes);
  return result;
}

template <class T, int V>
__global__ void __launch_bounds__(kBlockThreads, kSoftmaxBlocks<T>)
    segment_softmax_totals_kernel(const SegmentParams p) {
  using A = acc_t<T>;
  for_items<V>(p, p.num_segments, p.row_lanes, [&](int64_t segment, const SegmentLanes& lanes) {
    const Stretch places = places_of(p, segment);
    const Softmax<A, V> result = is_long(places) ? softmax_of_long<T, V>(p, places, lanes)
                                                 : softmax_of<T, V>(p, places, lanes);
    if (lanes.writes()) {
      const int64_t at = segment * p.width + lanes.column;
      store_unit<V>(static_cast<A*>(p.top) + at, result.top);
      store_unit<V>(static_cast<A*>(p.total) + at, result.total);
    }
  });
}

// -- Row by row ------------------------------------------------------------------------------

// out[at] = f(at, segment, element number of the unit in rows of segments) for all units of rows.
template <class T, int V, class F>
KGREC_DEVICE void for_units(const SegmentParams& p, F&& f) {
  using A = acc_t<T>;
  const int64_t units = p.width / V;
  for (int64_t i = thread_of_grid(); i < p.rows * units; i += threads_in_grid()) {
    const int64_t segment = segment_of_row(p, i / units);
    const Unit<A, V> result =
        segment < 0 ? filled<V>(A(NAN)) : f(i * V, segment, segment * p.width + i % units * V);
    store_unit<V>(static_cast<T*>(p.out) + i * V, result);
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kBlockThreads, kSegmentBlocks)
    segment_spread_kernel(const SegmentParams p) {
  using A = acc_t<T>;
  for_units<T, V>(p, [&](int64_t, int64_t segment, int64_t from) {
    Unit<A, V> x = load_unit<V>(static_cast<const T*>(p.src) + from);
    if (p.mean) {
      const A count = A(places_of(p, segment).size());
#pragma unroll
      for (int i = 0; i < V; ++i) {
        x[i] /= count;
      }
    }
    return x;
  });
}

template <class T, int V>
__global__ void __launch_bounds__(kBlockThreads, kSegmentBlocks)
    segment_softmax_kernel(const SegmentParams p) {
  using A = acc_t<T>;
  for_units<T, V>(p, [&](int64_t at, int64_t, int64_t from) {
    Unit<A, V> x = load_unit<V>(static_cast<const T*>(p.src) + at);
    const Unit<A, V> top = load_unit<V>(static_cast<const A*>(p.top) + from);
    const Unit<A, V> total = load_unit<V>(static_cast<const A*>(p.total) + from);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      x[i] = exp(x[i] - top[i]) / (total[i] + A(kSoftmaxEps));
    }
    return x;
  });
}

// out * (grad - sum over the segment of out * grad), where out is the result of forward, in src
template <class T, int V>
__global__ void __launch_bounds__(kBlockThreads, kSegmentBlocks)
    segment_softmax_backward_kernel(const SegmentParams p) {
  using A = acc_t<T>;
  for_units<T, V>(p, [&](int64_t at, int64_t, int64_t from) {
    Unit<A, V> y = load_unit<V>(static_cast<const T*>(p.src) + at);
    const Unit<A, V> grad = load_unit<V>(static_cast<const T*>(p.grad) + at);
    const Unit<A, V> total = load_unit<V>(static_cast<const A*>(p.total) + from);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      y[i] *= grad[i] - total[i];
    }
    return y;
  });
}

// -- Launches --------------------------------------------------------------------------------

// Calls f(element, integral constant V).
template <class F>
void with_unit(const SegmentParams& p, F&& f) {
  const auto aligned = [&](const void* data) { return is_aligned({data, p.width}, p.dtype); };
  const bool vectors = aligned(p.src) && aligned(p.grad) && aligned(p.out);
  const auto typed = [&](auto element) {
    constexpr int kSize = Vec<decltype(element)>::kSize;
    return vectors ? f(element, std::integral_constant<int, kSize>{})
                   : f(element, std::integral_constant<int, 1>{});
  };
  switch (p.dtype) {
    case DType::f32:
      return typed(float{});
    case DType::f64:
      return typed(double{});
    case DType::bf16:
      return typed(BFloat16{});
    case DType::f16:
      return typed(Half{});
  }
}

// Lanes go to columns first, then to as many rows as segments have on average. By shapes alone.
inline void set_geometry(SegmentParams& p, int unit) {
  p.chunks = chunks_of(p.rows);
  const int64_t units = p.width / unit;
  for (p.col_lanes = 1; p.col_lanes < kWarp && p.col_lanes < units;) {
    p.col_lanes *= 2;
  }
  for (p.row_lanes = 1;
       p.row_lanes * p.col_lanes < kWarp && p.row_lanes * p.num_segments < p.rows;) {
    p.row_lanes *= 2;
  }
}

// For groups of `lanes` lanes that take `items` in tiles of columns.
inline Geometry grid_for_items(const SegmentParams& p, int unit, int64_t items, int lanes) {
  const int64_t tile = int64_t{p.col_lanes} * unit;
  return grid_for(items * ((p.width + tile - 1) / tile), kBlockThreads / lanes);
}

// The two steps, `chunks` for long segments and `segments` for all of them.
template <class Kernel, class Run>
void run_segments(const SegmentParams& p, int unit, Kernel chunks, Kernel segments, Run&& run) {
  if (p.num_segments > 0) {
    run(chunks, grid_for_items(p, unit, p.batches * 2 * p.chunks, kWarp), p);
    run(segments, grid_for_items(p, unit, p.batches * p.num_segments, p.row_lanes * p.col_lanes),
        p);
  }
}

template <class Run>
void launches_segment_sum(SegmentParams p, Run&& run) {
  with_unit(p, [&](auto element, auto unit) {
    using T = decltype(element);
    set_geometry(p, unit);
    run_segments(p, unit, segment_sum_chunks_kernel<T, unit>, segment_sum_kernel<T, unit>, run);
  });
}

template <class Run>
void launches_segment_spread(const SegmentParams& p, Run&& run) {
  with_unit(p, [&](auto element, auto unit) {
    run(segment_spread_kernel<decltype(element), unit>,
        grid_for(p.rows * (p.width / unit), kBlockThreads), p);
  });
}

template <class Run>
void launches_segment_softmax(SegmentParams p, Run&& run) {
  with_unit(p, [&](auto element, auto unit) {
    using T = decltype(element);
    set_geometry(p, unit);
    run_segments(
        p, unit, segment_softmax_chunks_kernel<T, unit>, segment_softmax_totals_kernel<T, unit>,
        run);
    run(segment_softmax_kernel<T, unit>, grid_for(p.rows * (p.width / unit), kBlockThreads), p);
  });
}

template <class Run>
void launches_segment_softmax_backward(SegmentParams p, Run&& run) {
  with_unit(p, [&](auto element, auto unit) {
    using T = decltype(element);
    set_geometry(p, unit);
    run_segments(p, unit, segment_sum_chunks_kernel<T, unit>, segment_sum_kernel<T, unit>, run);
    run(segment_softmax_backward_kernel<T, unit>,
        grid_for(p.rows * (p.width / unit), kBlockThreads), p);
  });
}

}  // namespace kgrec::cuda
