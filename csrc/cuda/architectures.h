// What this library was compiled for.
#pragma once

#include <cstdint>
#include <vector>

namespace kgrec::cuda {

// 75, 80, ...: the compiler's own list.
std::vector<int64_t> architectures();

}  // namespace kgrec::cuda
