#include "cuda/relation_attention.cuh"

#include "cuda/relation_attention_backward.cuh"
#include "cuda/relation_attention_tails.cuh"
#include "cuda/relation_grad.cuh"
#include "entry.h"
#include "graph_args.h"

namespace kgrec::cuda {
namespace {

// What all passes of attention take; returns the type of sums.
template <class P>
DType attention_operands(cuda_host::Args& args, P& p) {
  p.dtype = args.dtype();
  p.width = args.size("query", 1);
  p.num_heads = args.integer("num_heads");
  p.query = cuda_host::matrix(args, "query", p.dtype);
  p.relation = cuda_host::matrix(args, "relation", p.dtype);
  return accumulate(p.dtype);
}

const void* zero_edges(cuda_host::Args& args, DType sums) {
  return args.has("zero_edges") ? args.in("zero_edges", sums) : nullptr;
}

// In shared memory with `in_shared`, which the binding chooses by size.
RelationSums relation_sums(cuda_host::Args& args, const RowPlan& plan, DType sums, int64_t width) {
  RelationSums s;
  s.runs = cuda_host::run_plan(args);
  s.in_shared = args.integer("in_shared") != 0;
  s.blocks = sums_blocks(plan);
  s.grad = args.out("grad_relation", sums);
  s.work = args.workspace("work", sums, sums_work_rows(s) * width);
  return s;
}

}  // namespace
}  // namespace kgrec::cuda

KGREC_ENTRY(relation_attention) {
  using namespace kgrec;
  cuda::AttentionParams p;
  const DType sums = cuda::attention_operands(args, p);
  p.row = cuda_host::row_order(args);
  p.plan = cuda_host::row_plan(args);
  p.value = cuda_host::matrix(args, "value", p.dtype);
  p.zero_edges = cuda::zero_edges(args, sums);
  p.out = args.out("out", sums);
  p.lse = args.out("lse", sums);
  const int64_t chunks = p.plan.num_chunks;
  p.partial = args.workspace("partial", sums, chunks * p.width);
  p.partial_softmax = args.workspace("partial_softmax", sums, 2 * chunks * p.num_heads);
  cuda::launches_attention(p, args.launcher);
}

KGREC_ENTRY(relation_attention_backward) {
  using namespace kgrec;
  cuda::AttentionBackwardParams p;
  const DType sums = cuda::attention_operands(args, p);
  p.row = cuda_host::row_order(args);
  p.plan = cuda_host::row_plan(args);
  p.sums = cuda::relation_sums(args, p.plan, sums, p.width);
  p.value = cuda_host::matrix(args, "value", p.dtype);
  p.grad_out = cuda_host::matrix(args, "grad_out", p.dtype);
  p.zero_edges = cuda::zero_edges(args, sums);
  p.out = args.in("out", sums);
  p.lse = args.in("lse", sums);
  p.grad_lse = args.in("grad_lse", sums);
  p.edge_grad = args.out("edge_grad", sums);
  p.grad_query = args.out("grad_query", sums);
  p.partial = args.workspace("partial", sums, p.plan.num_chunks * p.width);
  cuda::launches_attention_backward(p, args.launcher);
}

KGREC_ENTRY(relation_attention_tails) {
  using namespace kgrec;
  cuda::AttentionTailsParams p;
  const DType sums = cuda::attention_operands(args, p);
  p.col = cuda_host::column_order(args);
  p.plan = cuda_host::row_plan(args, "col_");
  p.grad_out = cuda_host::matrix(args, "grad_out", p.dtype);
  p.edge_grad = args.in("edge_grad", sums);
  p.addend = args.in("addend", sums);
  p.addend_rows = args.size("addend");
  p.grad_query = args.out("grad_query", p.dtype);
  p.grad_value = args.out("grad_value", p.dtype);
  const int64_t partials = p.plan.num_chunks * p.width;
  p.partial_query = args.workspace("partial_query", sums, partials);
  p.partial_value = args.workspace("partial_value", sums, partials);
  cuda::launches_attention_tails(p, args.launcher);
}

KGREC_ENTRY(relation_grad) {
  using namespace kgrec;
  cuda::RelationGradParams p;
  p.dtype = args.dtype();
  const DType sums = kgrec::accumulate(p.dtype);
  p.row = cuda_host::row_order(args);
  p.plan = cuda_host::row_plan(args);
  p.width = args.size("x", 1);
  p.sums = cuda::relation_sums(args, p.plan, sums, p.width);
  p.x = cuda_host::matrix(args, "x", p.dtype);
  p.left = cuda_host::matrix(args, "left", p.dtype);
  p.left_scale = args.in("left_scale", sums);
  cuda::launches_relation_grad(p, args.launcher);
}
