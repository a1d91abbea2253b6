// The state of one launch. What it does to kernels stands in scheduler.h.
#pragma once

#include <exception>
#include <string>
#include <vector>

#include "fiber.h"
#include "scheduler.h"

namespace kgrec::cuda_host {

constexpr int kMaxWarps = kMaxBlockLanes / kWarpLanes;

struct Lane {
  Context context;
  uint3 index;
  int number;  // in the block
  bool exited;
  bool waiting;  // at the meeting below
  Primitive primitive;
  unsigned mask;
  Site site;
  uint64_t value;
  uint64_t result;
  int source;
};

// Lanes of a warp that have come together for one call, and those still missed.
struct Meeting {
  unsigned mask;
  unsigned arrived;
  Primitive primitive;
  Site site;
};

struct Warp {
  unsigned present;  // lanes that the block has
  unsigned ready;    // lanes that could run
  std::vector<Meeting> meetings;
};

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 0x9E3779B97F4A7C15u) { next(); }
  uint32_t next() {  // xorshift64*
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return static_cast<uint32_t>((state_ * 0x2545F4914F6CDD1Du) >> 32);
  }
  // One of the bits set in `bits`, which is not 0.
  int pick_bit(unsigned bits) {
    const unsigned turn = next() % 32;
    const unsigned turned = (bits >> turn) | (turn != 0 ? bits << (32 - turn) : 0);
    return static_cast<int>((__builtin_ctz(turned) + turn) % 32);
  }

 private:
  uint64_t state_;
};

class Machine {
 public:
  void run(const Closure& kernel, dim3 grid, dim3 block, size_t shared_bytes, const Order& order);

  uint64_t meet_warp(Primitive primitive, unsigned mask, uint64_t value, int source, Site site);
  void meet_block(Site site);
  void run_lane();

  Lane& current() { return *current_; }

 private:
  void run_block(uint3 index);
  void start_lanes();
  Warp& warp_of(const Lane& lane) { return warps_[lane.number / kWarpLanes]; }
  Lane& lane_of(const Warp& warp, int lane) {
    return lanes_[(&warp - warps_.data()) * kWarpLanes + lane];
  }
  void set_ready(Warp& warp, unsigned lanes);
  void clear_ready(Warp& warp, unsigned lanes);
  Lane* pick();
  void suspend();
  void complete(Warp& warp, const Meeting& meeting);
  [[noreturn]] void report_deadlock();

  std::vector<Lane> lanes_;
  std::vector<Stack> stacks_;
  std::vector<Warp> warps_;
  Context main_;
  Lane* current_ = nullptr;
  bool running_ = false;
  Closure kernel_{};
  Order order_;
  Random random_{0};
  unsigned ready_warps_ = 0;
  int num_lanes_ = 0;
  int num_exited_ = 0;
  int num_at_barrier_ = 0;
  Site barrier_site_{};
  std::exception_ptr failure_;
};

extern Machine machine;

// A KernelError about `lane`, which need not be the one that runs.
[[noreturn]] void fail_at(const Lane& lane, Site site, const std::string& what);
bool same_site(Site a, Site b);
// The index alone where there is one dimension.
std::string index_text(uint3 index, dim3 of);

}  // namespace kgrec::cuda_host
