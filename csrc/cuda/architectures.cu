#include "cuda/architectures.h"

namespace kgrec::cuda {

std::vector<int64_t> architectures() {
  std::vector<int64_t> list{__CUDA_ARCH_LIST__};  // 750, 800, ...
  for (int64_t& x : list) {
    x /= 10;
  }
  return list;
}

}  // namespace kgrec::cuda
