#include "machine.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "memory.h"

namespace kgrec::cuda_host {

Machine machine;

namespace {

void lane_main() {
  enter_context();
  machine.run_lane();
}

}  // namespace

void Machine::run(
    const Closure& kernel, dim3 grid, dim3 block, size_t shared_bytes, const Order& order) {
  const uint64_t lanes = uint64_t{block.x} * block.y * block.z;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (running_) {
    throw std::logic_error("a kernel cannot launch another");
  }
  if (lanes == 0 || lanes > kMaxBlockLanes || blocks == 0) {
    throw std::invalid_argument(
        "launch of " + std::to_string(blocks) + " blocks of " + std::to_string(lanes) +
        " threads, expected 1 block and more of 1 to 1024 threads");
  }
  kernel_ = kernel;
  order_ = order;
  random_ = Random(order.seed);
  blockDim = block;
  gridDim = grid;
  num_lanes_ = static_cast<int>(lanes);
  lanes_.resize(std::max(lanes_.size(), static_cast<size_t>(lanes)));
  warps_.resize(kMaxWarps);
  while (stacks_.size() < lanes) {
    stacks_.emplace_back();
    stacks_.back().allocate();
  }

  std::vector<uint64_t> sequence(blocks);
  std::iota(sequence.begin(), sequence.end(), uint64_t{0});
  if (order.kind == Order::kBackward) {
    std::reverse(sequence.begin(), sequence.end());
  } else if (order.kind == Order::kShuffled) {
    for (uint64_t i = blocks; i > 1; --i) {
      std::swap(sequence[i - 1], sequence[random_.next() % i]);
    }
  }
  running_ = true;
  try {
    for (const uint64_t b : sequence) {
      begin_block_memory(shared_bytes);
      run_block(
          {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
           static_cast<unsigned>(b / grid.x / grid.y)});
      end_block_memory();
    }
  } catch (...) {
    running_ = false;
    throw;
  }
  running_ = false;
}

void Machine::run_block(uint3 index) {
  blockIdx = index;
  start_lanes();
  current_ = nullptr;
  current_ = pick();
  threadIdx = current_->index;
  switch_context(main_, current_->context);
  if (failure_ != nullptr) {
    std::rethrow_exception(std::exchange(failure_, nullptr));
  }
  if (num_exited_ < num_lanes_) {
    report_deadlock();
  }
}

void Machine::start_lanes() {
  ready_warps_ = 0;
  num_exited_ = 0;
  num_at_barrier_ = 0;
  for (int w = 0; w * kWarpLanes < num_lanes_; ++w) {
    Warp& warp = warps_[w];
    const int count = std::min(kWarpLanes, num_lanes_ - w * kWarpLanes);
    warp.present = ~0u >> (kWarpLanes - count);
    warp.meetings.clear();
    warp.ready = 0;
    set_ready(warp, warp.present);
  }
  for (int i = 0; i < num_lanes_; ++i) {
    Lane& lane = lanes_[i];
    const unsigned n = static_cast<unsigned>(i);
    lane.index = {n % blockDim.x, n / blockDim.x % blockDim.y, n / blockDim.x / blockDim.y};
    lane.number = i;
    lane.exited = false;
    lane.waiting = false;
    lane.context.stack = &stacks_[i];
    lane.context.sp = stacks_[i].prepare(lane_main, n);
  }
}

void Machine::run_lane() {
  try {
    kernel_.call(kernel_.data);
  } catch (...) {
    failure_ = std::current_exception();
  }
  // The handler is left before the switch: the runtime keeps a stack of handlers for each thread.
  Lane& lane = *current_;
  lane.exited = true;
  ++num_exited_;
  Warp& warp = warp_of(lane);
  clear_ready(warp, 1u << (lane.number % kWarpLanes));
  Lane* next = failure_ != nullptr ? nullptr : pick();
  if (next != nullptr) {
    current_ = next;
    threadIdx = next->index;
  }
  leave_context(lane.context, next != nullptr ? next->context : main_);
  __builtin_unreachable();
}

void Machine::set_ready(Warp& warp, unsigned lanes) {
  warp.ready |= lanes;
  ready_warps_ |= 1u << (&warp - warps_.data());
}

void Machine::clear_ready(Warp& warp, unsigned lanes) {
  warp.ready &= ~lanes;
  if (warp.ready == 0) {
    ready_warps_ &= ~(1u << (&warp - warps_.data()));
  }
}

// Who runs next, null if nobody can. Forward and backward let one warp, and in it one group, run as
// far ahead of the others as it can; shuffled stays with a warp for four steps on average.
Lane* Machine::pick() {
  if (ready_warps_ == 0) {
    return nullptr;
  }
  int w = 0, lane = 0;
  switch (order_.kind) {
    case Order::kForward:
      w = __builtin_ctz(ready_warps_);
      lane = __builtin_ctz(warps_[w].ready);
      break;
    case Order::kBackward:
      w = 31 - __builtin_clz(ready_warps_);
      lane = 31 - __builtin_clz(warps_[w].ready);
      break;
    case Order::kShuffled:
      w = current_ != nullptr ? current_->number / kWarpLanes : 0;
      if ((ready_warps_ >> w & 1) == 0 || random_.next() % 4 == 0) {
        w = random_.pick_bit(ready_warps_);
      }
      lane = random_.pick_bit(warps_[w].ready);
      break;
  }
  return &lanes_[w * kWarpLanes + lane];
}

// Lets another lane run; returns when this one is picked again.
void Machine::suspend() {
  Lane* self = current_;
  Lane* next = pick();
  if (next == self) {
    return;
  }
  if (next == nullptr) {
    switch_context(self->context, main_);
    return;  // never: a block without a ready lane is given up
  }
  current_ = next;
  threadIdx = next->index;
  switch_context(self->context, next->context);
}

std::string to_string(Site site) {
  const char* slash = std::strrchr(site.file, '/');
  return std::string(slash != nullptr ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

uint64_t meet_warp(Primitive primitive, unsigned mask, uint64_t value, int source, Site site) {
  return machine.meet_warp(primitive, mask, value, source, site);
}
void meet_block(Site site) {
  machine.meet_block(site);
}
int current_lane() {
  return machine.current().number % kWarpLanes;
}
int current_warp() {
  return machine.current().number / kWarpLanes;
}
void fail(Site site, const std::string& what) {
  fail_at(machine.current(), site, what);
}
void run_grid(
    const Closure& kernel, dim3 grid, dim3 block, size_t shared_bytes, const Order& order) {
  machine.run(kernel, grid, block, shared_bytes, order);
}

}  // namespace kgrec::cuda_host
