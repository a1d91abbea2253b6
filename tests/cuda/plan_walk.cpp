// The plan of the work as kernels see it, on the simplest kernels that follow it: sums of a number
// of each edge by row and by relation, a thread for what an op gives to a group or a warp.
#include "cuda/device.cuh"
#include "cuda/launch.h"
#include "graph_args.h"

namespace kgrec::cuda {
namespace {

struct PlanWalkParams {
  OrderView row;
  RowPlan rows;
  RunPlan runs;
  int64_t tile = 0;
  const int64_t* x = nullptr;       // [E] row order
  int64_t* row_sum = nullptr;       // [num_rows]
  int64_t* partial = nullptr;       // [num_chunks]
  int64_t* workspace = nullptr;     // [workspace_rows]
  int64_t* relation_sum = nullptr;  // [num_relations], zero
};

// The sum over [begin, end); that of each run goes to its place.
KGREC_DEVICE int64_t sum_edges(const PlanWalkParams& p, int64_t begin, int64_t end) {
  int64_t total = 0, run = 0;
  for (int64_t e = begin; e < end; ++e) {
    const bool kept = p.row.mask == nullptr || load(p.row.mask + e) != 0;
    run += kept ? load(p.x + e) : 0;
    const int32_t place = load(p.runs.place + e);
    if (e + 1 == end || load(p.runs.place + e + 1) != place) {
      store(p.workspace + place, run);
      total += run;
      run = 0;
    }
  }
  return total;
}

// What tile `p.tile` has of one bin: f(index) for each.
template <class F>
KGREC_DEVICE void for_tile(const PlanWalkParams& p, TileColumn column, F&& f) {
  const int32_t* bound = p.runs.tile + p.tile * kTileColumns + column;
  const int64_t end = load(bound + kTileColumns);
  for (int64_t i = load(bound) + thread_of_grid(); i < end; i += threads_in_grid()) {
    f(i);
  }
}

__global__ void __launch_bounds__(kBlockThreads) plan_rows_kernel(const PlanWalkParams p) {
  const auto whole = [&](int32_t row) {
    store(p.row_sum + row, sum_edges(p, load(p.row.ptr + row), load(p.row.ptr + row + 1)));
  };
  for_tile(p, kTileShort, [&](int64_t i) { whole(load(p.rows.short_row + i)); });
  for_tile(p, kTileLong, [&](int64_t i) { whole(load(p.rows.long_row + i)); });
  for_tile(p, kTileChunk, [&](int64_t i) {
    const int32_t* chunk = p.rows.chunk + 3 * i;
    store(p.partial + i, sum_edges(p, load(chunk + 1), load(chunk + 2)));
  });
}

__global__ void __launch_bounds__(kBlockThreads) plan_pieces_kernel(const PlanWalkParams p) {
  for_tile(p, kTilePiece, [&](int64_t i) {
    const int32_t begin = load(p.runs.piece + i), end = load(p.runs.piece + i + 1);
    int64_t total = 0;
    for (int32_t run = begin; run < end; ++run) {
      total += load(p.workspace + load(p.runs.perm + run));
    }
    store(p.workspace + load(p.runs.perm + begin), total);
  });
}

__global__ void __launch_bounds__(kBlockThreads) plan_sums_kernel(const PlanWalkParams p) {
  for_tile(p, kTileSum, [&](int64_t i) {
    const int32_t* sum = p.runs.sum + 3 * i;
    int64_t* total = p.relation_sum + load(sum);
    for (int32_t piece = load(sum + 1); piece < load(sum + 2); ++piece) {
      const int32_t first = load(p.runs.perm + load(p.runs.piece + piece));
      store(total, load(total) + load(p.workspace + first));
    }
  });
}

__global__ void __launch_bounds__(kBlockThreads) plan_hubs_kernel(const PlanWalkParams p) {
  for (int64_t i = thread_of_grid(); i < p.rows.num_hubs; i += threads_in_grid()) {
    const int32_t* hub = p.rows.hub + 3 * i;
    int64_t total = 0;
    for (int32_t chunk = load(hub + 1); chunk < load(hub + 2); ++chunk) {
      total += load(p.partial + chunk);
    }
    store(p.row_sum + load(hub), total);
  }
}

}  // namespace
}  // namespace kgrec::cuda

KGREC_ENTRY(plan_walk) {
  using namespace kgrec;
  using namespace kgrec::cuda;
  PlanWalkParams p;
  p.row = cuda_host::row_order(args);
  p.rows = cuda_host::row_plan(args);
  p.runs = cuda_host::run_plan(args);
  p.x = args.in<int64_t>("x");
  p.row_sum = args.out<int64_t>("row_sum");
  p.relation_sum = args.out<int64_t>("relation_sum");
  p.partial = args.workspace<int64_t>("partial", p.rows.num_chunks);
  p.workspace = args.workspace<int64_t>("workspace", p.runs.workspace_rows);
  const Geometry geometry = grid_for(p.row.num_rows, kBlockThreads);
  for (p.tile = 0; p.tile < p.runs.num_tiles; ++p.tile) {
    args.launcher(plan_rows_kernel, geometry, p);
    args.launcher(plan_pieces_kernel, geometry, p);
    args.launcher(plan_sums_kernel, geometry, p);
  }
  args.launcher(plan_hubs_kernel, geometry, p);
}
