// Which memory a kernel may touch, and how much of it it touches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "scheduler.h"

namespace kgrec::cuda_host {

// Memory of the "device": accesses outside of all ranges are errors, and so are writes to a range
// that is not writable. The same bytes may be added twice: they are writable if one range says so.
void allow_range(const void* begin, size_t bytes, bool writable, const std::string& name);
void forget_ranges();

// What load and store call before they touch memory.
void check_read(const void* p, size_t bytes, size_t alignment, Site site);
void check_write(const void* p, size_t bytes, size_t alignment, Site site);

// -- Shared memory of the block that runs ----------------------------------------------------

void begin_block_memory(size_t dynamic_bytes);
void end_block_memory();
// A static array is filled with 0xFF bytes (NaN) when the block first comes to it.
void* enter_shared_array(void* storage, size_t bytes);
void* dynamic_shared(size_t* bytes);

// -- Traffic ---------------------------------------------------------------------------------

// Distinct 32-byte sectors of global memory, per warp, call site and execution: the lanes of a warp
// that come to a site for the k-th time are taken to do so together. Sectors count from the start
// of an array, since CUDA's allocator aligns more than numpy's.
struct Traffic {
  std::string site;
  std::string array;
  bool write;
  uint64_t executions;
  uint64_t sectors;
  uint64_t bytes;  // as lanes asked for them
};
void count_traffic(bool on);  // forgets what was counted
std::vector<Traffic> counted_traffic();

}  // namespace kgrec::cuda_host
