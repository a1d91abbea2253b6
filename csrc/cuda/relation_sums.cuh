// How a row pass gives away the shares of its runs, and how they are added up: see relation_grad.h.
#pragma once

#include "cuda/heads.cuh"
#include "cuda/relation_grad.h"

namespace kgrec::cuda {

KGREC_DEVICE WorkRange work_of(const RowPlan& plan, const RelationSums& sums) {
  if (sums.tile < 0) {
    return all_work(plan);
  }
  const int32_t* at = sums.runs.tile + sums.tile * kTileColumns;
  const int32_t* next = at + kTileColumns;
  return {load(at + kTileShort),  load(next + kTileShort), load(at + kTileLong),
          load(next + kTileLong), load(at + kTileChunk),   load(next + kTileChunk)};
}

// f(first item, stride, sums of the warp in shared memory or null), with what that needs before and
// after. Shared sums: the same blocks whatever the grid.
template <class A, class F>
KGREC_DEVICE void for_sums_blocks(const RelationSums& sums, int64_t width, A* shared, F&& f) {
  const int64_t blocks = sums.in_shared ? sums.blocks : gridDim.x;
  const int64_t size = sums.runs.num_relations * width;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    A* mine = nullptr;
    if (sums.in_shared) {
      mine = shared + warp_of_block() * size;
      for (int64_t i = lane_of_warp(); i < size; i += kWarp) {
        store(mine + i, A(0));
      }
      __syncwarp();
    }
    f(block * kSumsWarps + warp_of_block(), blocks * kSumsWarps, mine);
    if (sums.in_shared) {
      __syncthreads();
      for (int64_t i = threadIdx.x; i < size; i += kSumsThreads) {
        A sum = 0;
#pragma unroll
        for (int w = 0; w < kSumsWarps; ++w) {
          sum += load(shared + w * size + i);
        }
        store(static_cast<A*>(sums.work) + block * size + i, sum);
      }
      __syncthreads();
    }
  }
}

// The shares of the runs in the share of a row that a group has. All lanes of the warp come to
// add() and finish() together.
template <class H, class A>
class RunShares {
 public:
  static constexpr int kLanes = H::kLanes;
  static constexpr int kGroups = kWarp / kLanes;

  KGREC_DEVICE RunShares(const RelationSums& sums, int64_t width, const Share& share, A* shared)
      : sums_(sums), width_(width), group_(share.group), shared_(shared) {
    if (shared == nullptr && share.begin < share.end) {
      const int32_t* place = sums.runs.place + share.begin;
      place_ = load(place);
      // A run that began in the group before has its place written there.
      continues_ = kGroups > 1 && share.together && group_ > 0 && load(place - 1) == place_;
    }
  }

  // Where `ends`: the share of the next run, of relation `rel`. values_of(v, values) makes that of
  // a vector: all of them at once would take registers.
  template <class F>
  KGREC_DEVICE void add(const H& columns, bool ends, int32_t rel, F&& values_of) {
    if (shared_ != nullptr) {
      // Groups of a warp in turns: two may have the same relation.
      const unsigned who = kGroups > 1 ? __ballot_sync(kFullMask, ends) : 0;
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        if (kGroups > 1 && ((who >> (g * kLanes)) & 1u) == 0) {
          continue;
        }
        if (ends && group_ == g) {
          add_to(columns, shared_ + rel * width_, values_of);
        }
        if (kGroups > 1) {
          __syncwarp();
        }
      }
    } else if (ends) {
      if (continues_) {
#pragma unroll
        for (int v = 0; v < H::kVectors; ++v) {
          values_of(v, carried_[v]);
        }
        carried_place_ = place_;
        continues_ = false;
      } else {
#pragma unroll
        for (int v = 0; v < H::kVectors; ++v) {
          A values[H::kSize];
          values_of(v, values);
          columns.write(place_row(place_), v, values);
        }
      }
      ++place_;  // runs of a share have places in a row
    }
  }

  // After the last run of the share.
  KGREC_DEVICE void finish(const H& columns, bool together) {
    if (kGroups > 1 && shared_ == nullptr && together) {
#pragma unroll
      for (int g = 1; g < kGroups; ++g) {
        __syncwarp();
        if (group_ == g && carried_place_ >= 0) {
          add_to(columns, place_row(carried_place_), [&](int v, A* values) {
#pragma unroll
            for (int i = 0; i < H::kSize; ++i) {
              values[i] = carried_[v][i];
            }
          });
        }
      }
    }
  }

 private:
  KGREC_DEVICE A* place_row(int32_t place) const {
    return static_cast<A*>(sums_.work) + place * width_;
  }
  template <class F>
  static KGREC_DEVICE void add_to(const H& columns, A* row, F&& values_of) {
#pragma unroll
    for (int v = 0; v < H::kVectors; ++v) {
      A sum[H::kSize], values[H::kSize];
      columns.read(row, v, sum);
      values_of(v, values);
#pragma unroll
      for (int i = 0; i < H::kSize; ++i) {
        sum[i] += values[i];
      }
      columns.write(row, v, sum);
    }
  }

  const RelationSums& sums_;
  int64_t width_;
  int group_;
  A* shared_;
  int32_t place_ = -1;
  bool continues_ = false;
  LaneValues<H, A> carried_{};
  int32_t carried_place_ = -1;
};

// -- From shares to sums -----------------------------------------------------------------------

// The sums of all blocks: a warp takes neighbouring blocks and neighbouring elements, and what the
// warps of a block have is added up in order.
template <class A>
__global__ void __launch_bounds__(kBlockThreads, kBlocksAtOnce)
    relation_blocks_kernel(const RelationSumsParams p) {
  constexpr int kWarps = kBlockThreads / kWarp;
  KGREC_SHARED(A, parts, kBlockThreads);
  const int64_t size = p.sums.runs.num_relations * p.width;
  const int warp = warp_of_block(), lane = lane_of_warp();
  const int64_t begin = p.sums.blocks * warp / kWarps, end = p.sums.blocks * (warp + 1) / kWarps;
  for (int64_t first = int64_t{blockIdx.x} * kWarp; first < size;
       first += int64_t{gridDim.x} * kWarp) {
    const int64_t i = first + lane;
    A sum = 0;
    if (i < size) {
#pragma unroll 4
      for (int64_t block = begin; block < end; ++block) {
        sum += load(static_cast<const A*>(p.sums.work) + block * size + i);
      }
    }
    parts[warp * kWarp + lane] = sum;
    __syncthreads();
    if (warp == 0 && i < size) {
      A total = 0;
      for (int w = 0; w < kWarps; ++w) {
        total += parts[w * kWarp + lane];
      }
      store(static_cast<A*>(p.sums.grad) + i, total);
    }
    __syncthreads();
  }
}

// Each piece into the place of its first run.
template <class A, class S>
__global__ void __launch_bounds__(kBlockThreads, kBlocksAtOnce)
    relation_pieces_kernel(const RelationSumsParams p) {
  using C = LaneColumns<A, S>;
  const RunPlan& runs = p.sums.runs;
  A* work = static_cast<A*>(p.sums.work);
  const int32_t* bound = runs.tile + p.sums.tile * kTileColumns + kTilePiece;
  const int64_t last = load(bound + kTileColumns), stride = threads_in_grid() / C::kLanes;
  const int lane = lane_of_warp() % C::kLanes;
  for (int64_t piece = load(bound) + thread_of_grid() / C::kLanes; piece < last; piece += stride) {
    const int32_t begin = load(runs.piece + piece), end = load(runs.piece + piece + 1);
    if (end - begin < 2) {
      continue;
    }
    int64_t slice = 0;
    do {
      const C columns(lane, slice, p.width);
      const LaneValues<C, A> sum = sum_rows(
          columns, static_cast<const A*>(work), p.width, begin, end,
          [&](int64_t run) { return int64_t{load(runs.perm + run)}; });
#pragma unroll
      for (int v = 0; v < C::kVectors; ++v) {
        columns.write(work + int64_t{load(runs.perm + begin)} * p.width, v, sum[v]);
      }
      slice = C::next_slice(slice);
    } while (slice < p.width);
  }
}

// The pieces of each relation, a block for each: groups take neighbouring pieces, and the sums of
// groups are added up in order.
template <class A, class S>
__global__ void __launch_bounds__(kBlockThreads, kBlocksAtOnce)
    relation_pieces_sum_kernel(const RelationSumsParams p) {
  using C = LaneColumns<A, S>;
  constexpr int kGroups = kBlockThreads / C::kLanes;
  constexpr int kColumns = C::kLanes * C::kVectors * C::kSize;
  KGREC_SHARED(A, parts, kGroups * kColumns);
  const RunPlan& runs = p.sums.runs;
  const int32_t* bound = runs.tile + p.sums.tile * kTileColumns + kTileSum;
  const int64_t last = load(bound + kTileColumns);
  const int group = static_cast<int>(threadIdx.x) / C::kLanes;
  const int lane = lane_of_warp() % C::kLanes;
  for (int64_t sum = load(bound) + blockIdx.x; sum < last; sum += gridDim.x) {
    const int32_t* entry = runs.sum + 3 * sum;
    const int64_t relation = load(entry), begin = load(entry + 1), size = load(entry + 2) - begin;
    A* grad = static_cast<A*>(p.sums.grad) + relation * p.width;
    int64_t slice = 0;
    do {
      const C columns(lane, slice, p.width);
      const LaneValues<C, A> part = sum_rows(
          columns, static_cast<const A*>(p.sums.work), p.width, begin + size * group / kGroups,
          begin + size * (group + 1) / kGroups,
          [&](int64_t piece) { return int64_t{load(runs.perm + load(runs.piece + piece))}; });
#pragma unroll
      for (int v = 0; v < C::kVectors; ++v) {
#pragma unroll
        for (int i = 0; i < C::kSize; ++i) {
          parts[group * kColumns + (v * C::kLanes + lane) * C::kSize + i] = part[v][i];
        }
      }
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < kColumns; i += kBlockThreads) {
        const int64_t column = slice + i;
        if (column < p.width) {
          A total = load(grad + column);
          for (int g = 0; g < kGroups; ++g) {
            total += parts[g * kColumns + i];
          }
          store(grad + column, total);
        }
      }
      __syncthreads();
      slice = C::next_slice(slice);
    } while (slice < p.width);
  }
}

// Of a row pass.
template <int kLanes>
Geometry sums_geometry(const RowPlan& plan, const RelationSums& sums, DType dtype, int64_t width) {
  Geometry geometry = grid_for(items_of<kLanes>(all_work(plan)), kSumsWarps);
  geometry.threads = kSumsThreads;
  if (sums.in_shared) {
    geometry.blocks = static_cast<unsigned>(sums.blocks);
    geometry.shared_bytes =
        static_cast<unsigned>(shared_sums_bytes(dtype, width, sums.runs.num_relations));
  }
  return geometry;
}

// The row pass of each tile, a kernel whose params have `sums`, and then the sums of the tile.
template <int kLanes, class P, class Run>
void launches_with_sums(void (*rows)(P), P p, Run&& run) {
  const RunPlan& runs = p.sums.runs;
  RelationSumsParams sums{p.sums, accumulate(p.dtype), p.width};
  const Geometry geometry = sums_geometry<kLanes>(p.plan, p.sums, sums.dtype, p.width);
  const auto typed = [&](auto zero) {
    using A = decltype(zero);
    if (p.sums.in_shared || runs.num_tiles == 0) {
      run(rows, geometry, p);
      if (p.sums.in_shared) {
        run(relation_blocks_kernel<A>, grid_for(runs.num_relations * p.width, kWarp), sums);
      }
      return;
    }
    for (int64_t tile = 0; tile < runs.num_tiles; ++tile) {
      p.sums.tile = runs.num_tiles > 1 ? tile : -1;  // one tile needs not be looked up
      sums.sums.tile = tile;
      run(rows, geometry, p);
      with_width<A>(p.width, is_aligned(Matrix{p.sums.work, p.width}, sums.dtype), [&](auto shape) {
        using S = decltype(shape);
        run(relation_pieces_kernel<A, S>, grid_for_rows<S>(runs.num_pieces), sums);
        run(relation_pieces_sum_kernel<A, S>, grid_for(runs.num_sums, 1), sums);
      });
    }
  };
  sums.dtype == DType::f64 ? typed(double{}) : typed(float{});
}

}  // namespace kgrec::cuda
