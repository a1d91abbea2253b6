// CUDA's execution model on one CPU thread: every lane of a block is a fiber, and fibers switch
// where lanes meet (shuffles, votes, barriers) and nowhere else. Who runs next is the test's
// choice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

// CUDA's own names, in the global namespace as there.
struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
// Of the lane that runs; set at each switch.
inline uint3 threadIdx{}, blockIdx{};
inline dim3 blockDim, gridDim;

namespace kgrec::cuda_host {

constexpr int kWarpLanes = 32;
constexpr int kMaxBlockLanes = 1024;

// A mistake of a kernel; the message names block, thread and call site.
class KernelError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Where in a kernel something is called: the defaults are those of the outermost call.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

std::string to_string(Site site);

// The order of lanes, warps and blocks. A result that depends on it is a missing barrier.
struct Order {
  enum Kind { kForward, kBackward, kShuffled } kind = kForward;
  uint64_t seed = 0;
};

enum class Primitive : uint8_t {
  kShfl,
  kUp,
  kDown,
  kXor,
  kBallot,
  kAny,
  kAll,
  kSyncwarp,
  kSyncthreads
};

// The lanes named by `mask` meet. Shuffles return the `value` of lane `source` of the warp; votes
// take a `value` of 0 or 1 and return their result.
uint64_t meet_warp(Primitive primitive, unsigned mask, uint64_t value, int source, Site site);
// All threads of the block meet.
void meet_block(Site site);

// Of the lane that runs, in its warp and of its warp in the block.
int current_lane();
int current_warp();
[[noreturn]] void fail(Site site, const std::string& what);  // a KernelError about that lane

// A kernel with its argument, type-erased.
struct Closure {
  void (*call)(const void*);
  const void* data;
};
void run_grid(
    const Closure& kernel, dim3 grid, dim3 block, size_t shared_bytes, const Order& order);

template <class P>
void launch(
    void (*kernel)(P), dim3 grid, dim3 block, size_t shared_bytes, const P& params,
    const Order& order) {
  struct Call {
    void (*kernel)(P);
    const P& params;
  } call{kernel, params};
  const auto run = [](const void* data) {
    const Call& c = *static_cast<const Call*>(data);
    c.kernel(c.params);
  };
  run_grid({run, &call}, grid, block, shared_bytes, order);
}

}  // namespace kgrec::cuda_host
