// What the kernels of both libraries agree on.
#pragma once

namespace kgrec {

constexpr double kNormEps = 1e-12;  // norms below it are replaced by it

}  // namespace kgrec
