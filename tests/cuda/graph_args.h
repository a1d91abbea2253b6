// Graphs for entry points: views of the arrays that graph_args.py passes, as csrc/cuda/binding.h
// makes them of tensors.
#pragma once

#include <algorithm>
#include <string>

#include "common/graph_view.h"
#include "entry.h"

namespace kgrec::cuda_host {

inline Matrix matrix(Args& args, const std::string& name, DType dtype) {
  return args.has(name) ? Matrix{args.in(name, dtype), args.row_stride(name)} : Matrix{};
}

inline OrderView row_order(Args& args) {
  OrderView view;
  view.num_rows = args.size("rowptr") - 1;
  view.num_edges = args.size("col");
  view.ptr = args.in<int64_t>("rowptr");
  view.idx = args.in<int32_t>("col");
  view.rel = args.in_or_null<int32_t>("rel");
  view.mask = args.in_or_null<uint8_t>("row_mask");
  return view;
}

inline OrderView column_order(Args& args) {
  OrderView view;
  view.num_rows = args.size("colptr") - 1;
  view.num_edges = args.size("col_row");
  view.ptr = args.in<int64_t>("colptr");
  view.idx = args.in<int32_t>("col_row");
  view.rel = args.in_or_null<int32_t>("col_rel");
  view.pos = args.in<int32_t>("col_pos");
  view.mask = args.in_or_null<uint8_t>("col_mask");
  return view;
}

// With the prefix "col_" that of the columns.
inline RowPlan row_plan(Args& args, const std::string& prefix = "") {
  RowPlan plan;
  plan.num_short = args.size(prefix + "short_row");
  plan.num_long = args.size(prefix + "long_row");
  plan.num_chunks = args.size(prefix + "chunk");
  plan.num_hubs = args.size(prefix + "hub");
  plan.short_row = args.in<int32_t>(prefix + "short_row");
  plan.long_row = args.in<int32_t>(prefix + "long_row");
  plan.chunk = args.in<int32_t>(prefix + "chunk");
  plan.hub = args.in<int32_t>(prefix + "hub");
  return plan;
}

// As many places as the tiles of this plan have: tests make smaller ones than bindings do.
inline RunPlan run_plan(Args& args) {
  RunPlan plan;
  plan.num_relations = args.integer("num_relations");
  plan.num_tiles = args.size("run_tile") - 1;
  plan.num_runs = args.size("run_perm");
  plan.num_pieces = args.size("run_piece") - 1;
  plan.num_sums = args.size("run_sum");
  plan.workspace_rows = args.integer("workspace_rows");
  plan.place = args.in<int32_t>("run_place");
  plan.tile = args.in<int32_t>("run_tile");
  plan.perm = args.in<int32_t>("run_perm");
  plan.piece = args.in<int32_t>("run_piece");
  plan.sum = args.in<int32_t>("run_sum");
  return plan;
}

}  // namespace kgrec::cuda_host
