#include "cuda/dropout_normalize_add.cuh"

#include "entry.h"
#include "graph_args.h"

namespace kgrec::cuda_host {
namespace {

cuda::Dropout dropout(Args& args) {
  cuda::Dropout dropout;
  if (args.has("rng")) {
    const double p = args.number("p");
    dropout.rng = args.in<int64_t>("rng");
    dropout.stream = args.integer("stream");
    dropout.threshold = drop_threshold(p);
    dropout.scale = 1.0 / (1.0 - p);
    dropout.row_ids = args.in_or_null<int64_t>("row_ids");
  }
  return dropout;
}

}  // namespace
}  // namespace kgrec::cuda_host

KGREC_ENTRY(dropout_normalize_add) {
  using namespace kgrec;
  cuda::DropoutNormalizeAddParams p;
  p.dtype = args.dtype();
  p.rows = args.size("x");
  p.width = args.size("x", 1);
  p.dropout = cuda_host::dropout(args);
  p.x = cuda_host::matrix(args, "x", p.dtype);
  p.residual = cuda_host::matrix(args, "residual", p.dtype);  // or none
  p.y = args.out("y", p.dtype);
  p.out = args.out_or_null("out", p.dtype);
  p.norm = args.out("norm", kgrec::accumulate(p.dtype));
  cuda::launches_dropout_normalize_add(p, args.launcher);
}

KGREC_ENTRY(dropout_normalize_add_backward) {
  using namespace kgrec;
  cuda::DropoutNormalizeAddBackwardParams p;
  p.dtype = args.dtype();
  p.rows = args.size("y");
  p.width = args.size("y", 1);
  p.dropout = cuda_host::dropout(args);
  p.grad_y = cuda_host::matrix(args, "grad_y", p.dtype);
  p.grad_out = cuda_host::matrix(args, "grad_out", p.dtype);
  p.y = cuda_host::matrix(args, "y", p.dtype);
  p.norm = args.in("norm", kgrec::accumulate(p.dtype));
  p.grad_x = args.out("grad_x", p.dtype);
  cuda::launches_dropout_normalize_add_backward(p, args.launcher);
}
