// The counting behind memory.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "scheduler.h"

namespace kgrec::cuda_host {

inline bool counting = false;

void count_access_slow(uint32_t range, int64_t offset, size_t bytes, bool write, Site site);
void end_block_traffic();
const std::string& range_name(uint32_t range);

inline void count_access(uint32_t range, int64_t offset, size_t bytes, bool write, Site site) {
  if (counting) {
    count_access_slow(range, offset, bytes, write, site);
  }
}

}  // namespace kgrec::cuda_host
