#include "cuda/aggregate.cuh"

#include "entry.h"
#include "graph_args.h"

// Rows, or columns with `transpose`.
KGREC_ENTRY(aggregate) {
  using namespace kgrec;
  cuda::AggregateParams p;
  const bool transpose = args.integer("transpose", 0) != 0;
  p.dtype = args.dtype();
  const DType sums = kgrec::accumulate(p.dtype);
  p.order = transpose ? cuda_host::column_order(args) : cuda_host::row_order(args);
  p.plan = cuda_host::row_plan(args, transpose ? "col_" : "");
  p.width = args.size("x", 1);
  p.wide_out = args.integer("wide_out", 0) != 0;
  p.x = cuda_host::matrix(args, "x", p.dtype);
  p.relation = cuda_host::matrix(args, "relation", p.dtype);
  p.weight = args.in_or_null("weight", sums);
  p.source_scale = args.in_or_null("source_scale", sums);
  p.inverse_count = args.out_or_null("inverse_count", sums);
  p.row_scale = args.in_or_null("row_scale", sums);
  p.scale = args.number("scale");
  if (args.has("addend")) {
    p.addend = args.in("addend", sums);
    p.addend_rows = args.size("addend");
  }
  p.out = args.out("out", p.wide_out ? sums : p.dtype);
  const int64_t partials = p.plan.num_chunks * p.width;
  p.partial = args.workspace("partial", sums, partials);
  p.partial_count = args.workspace<int32_t>("partial_count", p.plan.num_chunks);
  cuda::launches_aggregate(p, args.launcher);
}

KGREC_ENTRY(edge_dot) {
  using namespace kgrec;
  cuda::EdgeDotParams p;
  p.dtype = args.dtype();
  p.order = cuda_host::row_order(args);
  p.plan = cuda_host::row_plan(args);
  p.width = args.size("row_side", 1);
  p.row_side = cuda_host::matrix(args, "row_side", p.dtype);
  p.col_side = cuda_host::matrix(args, "col_side", p.dtype);
  p.out = args.out("out", kgrec::accumulate(p.dtype));
  cuda::launches_edge_dot(p, args.launcher);
}
