#include "cuda/architectures.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CompositeExplicitAutograd, m) {
  m.impl("_cuda_architectures", TORCH_BOX(&kgrec::cuda::architectures));
}
