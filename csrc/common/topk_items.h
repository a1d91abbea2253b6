// What the kernels of both libraries see of known items. Whatever lies outside of the arrays is
// left out: on a device nobody else has looked at it.
#pragma once

#include <cstdint>

namespace kgrec {

struct KnownView {
  const int64_t* ptr = nullptr;    // [num_users + 1], null where nothing is known
  const void* items = nullptr;     // [num_known] int64, or int32
  bool wide = false;               // int64
  const int64_t* users = nullptr;  // [rows], null: the number of the row
  int64_t num_users = 0;
  int64_t num_known = 0;
};

}  // namespace kgrec
