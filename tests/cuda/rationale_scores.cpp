#include "cuda/rationale_scores.cuh"

#include "entry.h"
#include "graph_args.h"

KGREC_ENTRY(rationale_scores) {
  using namespace kgrec;
  cuda::RationaleParams p;
  p.dtype = args.dtype();
  const DType sums = kgrec::accumulate(p.dtype);
  p.order = cuda_host::row_order(args);
  p.plan = cuda_host::row_plan(args);
  p.width = args.size("query", 1);
  p.num_heads = args.integer("num_heads");
  p.query = cuda_host::matrix(args, "query", p.dtype);
  p.relation = cuda_host::matrix(args, "relation", p.dtype);
  p.logits = args.out("logits", sums);
  p.scores = args.out("scores", sums);
  const int64_t partials = 2 * p.plan.num_chunks;
  p.partial = args.workspace("partial", sums, partials);
  p.partial_count = args.workspace<int32_t>("partial_count", p.plan.num_chunks);
  cuda::launches_rationale_scores(p, args.launcher);
}
