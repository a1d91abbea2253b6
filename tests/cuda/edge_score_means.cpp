#include "cuda/edge_score_means.cuh"

#include "entry.h"
#include "graph_args.h"

KGREC_ENTRY(edge_score_means) {
  using namespace kgrec;
  cuda::EdgeScoreMeansParams p;
  p.dtype = args.dtype();
  p.order = cuda_host::column_order(args);
  p.plan = cuda_host::row_plan(args, "col_");
  p.row_mask = args.in_or_null<uint8_t>("row_mask");
  p.score = args.in("score", p.dtype);
  p.num_items = args.size("out");
  p.out = args.out("out", p.dtype);
  p.partial = args.workspace("partial", p.dtype, p.plan.num_chunks);
  p.partial_count = args.workspace<int32_t>("partial_count", p.plan.num_chunks);
  cuda::launches_edge_score_means(p, args.launcher);
}
