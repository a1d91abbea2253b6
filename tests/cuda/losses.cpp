#include "cuda/bpr_loss.cuh"
#include "cuda/contrast_loss.cuh"
#include "cuda/reconstruction_loss.cuh"

#include "entry.h"
#include "graph_args.h"

namespace kgrec::cuda_host {
namespace {

// What the losses that are means have in common, `like` being a matrix with their rows.
template <class P>
void rows_of(Args& args, P& p, const char* like) {
  p.dtype = args.dtype();
  p.rows = args.size(like);
  p.width = args.size(like, 1);
  p.weight = args.in_or_null("weight", accumulate(p.dtype));
}

template <class P>
void mean_of(Args& args, P& p) {
  double* sums = args.workspace<double>("sums", 2 * cuda::loss_chunks(p.rows));
  p.mean.sums = reinterpret_cast<LossSums*>(sums);
  p.mean.loss = args.out("loss", accumulate(p.dtype));
  p.mean.total = args.out<double>("total");
}

template <class P>
void gradient_of(Args& args, P& p) {
  p.grad = args.in("grad", accumulate(p.dtype));
  p.total = args.in<double>("total");
}

template <class P>
void pairs(Args& args, P& p) {
  rows_of(args, p, "user");
  p.reg_weight = args.number("reg_weight");
  p.eps = args.number("eps");
  p.user = matrix(args, "user", p.dtype);
  p.positive = matrix(args, "positive", p.dtype);
  p.negative = matrix(args, "negative", p.dtype);
}

template <class P>
void slots(Args& args, P& p) {
  rows_of(args, p, "head");
  p.num_relations = args.size("relation");
  p.head = matrix(args, "head", p.dtype);
  p.tail = matrix(args, "tail", p.dtype);
  p.relation = matrix(args, "relation", p.dtype);
  p.ids.wide = args.has("ids");
  p.ids.data = p.ids.wide ? static_cast<const void*>(args.in<int64_t>("ids"))
                          : static_cast<const void*>(args.in<int32_t>("short_ids"));
}

template <class P>
void views(Args& args, P& p) {
  p.dtype = args.dtype();
  p.rows = args.size("z1");
  p.width = args.size("z1", 1);
  p.tau = args.number("tau");
  p.z1 = matrix(args, "z1", p.dtype);
  p.z2 = matrix(args, "z2", p.dtype);
  p.permutation = args.in<int64_t>("permutation");
}

}  // namespace
}  // namespace kgrec::cuda_host

KGREC_ENTRY(contrast_loss) {
  using namespace kgrec;
  cuda::ContrastLossParams p;
  cuda_host::views(args, p);
  p.inverse = args.out<int32_t>("inverse");
  p.loss = args.out("loss", accumulate(p.dtype));
  p.kept = args.out("kept", accumulate(p.dtype));
  cuda::launches_contrast_loss(p, args.launcher);
}

KGREC_ENTRY(contrast_loss_backward) {
  using namespace kgrec;
  cuda::ContrastLossBackwardParams p;
  cuda_host::views(args, p);
  p.grad = cuda_host::matrix(args, "grad", accumulate(p.dtype));
  p.inverse = args.in<int32_t>("inverse");
  p.kept = args.in("kept", accumulate(p.dtype));
  p.grad_z1 = args.out("grad_z1", p.dtype);
  p.grad_z2 = args.out("grad_z2", p.dtype);
  cuda::launches_contrast_loss_backward(p, args.launcher);
}

KGREC_ENTRY(bpr_loss) {
  using namespace kgrec;
  cuda::BprLossParams p;
  cuda_host::pairs(args, p);
  cuda_host::mean_of(args, p);
  p.gap = args.out("gap", accumulate(p.dtype));
  cuda::launches_bpr_loss(p, args.launcher);
}

KGREC_ENTRY(bpr_loss_backward) {
  using namespace kgrec;
  cuda::BprLossBackwardParams p;
  cuda_host::pairs(args, p);
  cuda_host::gradient_of(args, p);
  p.gap = args.in("gap", accumulate(p.dtype));
  p.grad_user = args.out("grad_user", p.dtype);
  p.grad_positive = args.out("grad_positive", p.dtype);
  p.grad_negative = args.out("grad_negative", p.dtype);
  cuda::launches_bpr_loss_backward(p, args.launcher);
}

KGREC_ENTRY(reconstruction_loss) {
  using namespace kgrec;
  cuda::ReconstructionLossParams p;
  cuda_host::slots(args, p);
  cuda_host::mean_of(args, p);
  p.score = args.out("score", accumulate(p.dtype));
  cuda::launches_reconstruction_loss(p, args.launcher);
}

KGREC_ENTRY(reconstruction_loss_backward) {
  using namespace kgrec;
  cuda::ReconstructionLossBackwardParams p;
  cuda_host::slots(args, p);
  cuda_host::gradient_of(args, p);
  p.score = args.in("score", accumulate(p.dtype));
  p.grad_head = args.out("grad_head", p.dtype);
  p.grad_tail = args.out("grad_tail", p.dtype);
  p.grad_relation = args.out("grad_relation", p.dtype);
  cuda::launches_reconstruction_loss_backward(p, args.launcher);
}
