// Random bits for a range of elements.
#pragma once

#include "common/philox.h"

namespace kgrec::cpu {

struct RandomBitsParams {
  PhiloxDraw draw;
  int64_t* out = nullptr;  // [n]
};

}  // namespace kgrec::cpu
