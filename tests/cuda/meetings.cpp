// Where lanes meet: shuffles, votes and barriers, and what is said when somebody does not come.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "machine.h"

namespace kgrec::cuda_host {
namespace {

const char* name_of(Primitive primitive) {
  switch (primitive) {
    case Primitive::kShfl:
      return "__shfl_sync";
    case Primitive::kUp:
      return "__shfl_up_sync";
    case Primitive::kDown:
      return "__shfl_down_sync";
    case Primitive::kXor:
      return "__shfl_xor_sync";
    case Primitive::kBallot:
      return "__ballot_sync";
    case Primitive::kAny:
      return "__any_sync";
    case Primitive::kAll:
      return "__all_sync";
    case Primitive::kSyncwarp:
      return "__syncwarp";
    case Primitive::kSyncthreads:
      return "__syncthreads";
  }
  return "?";
}

std::string hex(unsigned mask) {
  char text[16];
  snprintf(text, sizeof(text), "0x%08x", mask);
  return text;
}

// What a lane that others wait for is doing.
std::string whereabouts(const Lane& lane) {
  if (lane.exited) {
    return "which has exited";
  }
  std::string text = std::string("which is at ") + name_of(lane.primitive);
  if (lane.primitive != Primitive::kSyncthreads) {
    text += " with mask " + hex(lane.mask);
  }
  return text + " (" + to_string(lane.site) + ")";
}

}  // namespace

std::string index_text(uint3 i, dim3 of) {
  if (of.y == 1 && of.z == 1) {
    return std::to_string(i.x);
  }
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

bool same_site(Site a, Site b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

void fail_at(const Lane& lane, Site site, const std::string& what) {
  throw KernelError(
      "block " + index_text(blockIdx, gridDim) + ", thread " + index_text(lane.index, blockDim) +
      ", " + to_string(site) + ": " + what);
}

uint64_t Machine::meet_warp(
    Primitive primitive, unsigned mask, uint64_t value, int source, Site site) {
  Lane& self = *current_;
  Warp& warp = warp_of(self);
  const unsigned bit = 1u << (self.number % kWarpLanes);
  if ((mask & bit) == 0) {
    fail_at(
        self, site,
        std::string(name_of(primitive)) + ": mask " + hex(mask) +
            " does not name the lane that calls");
  }
  if ((mask & ~warp.present) != 0) {
    fail_at(
        self, site,
        std::string(name_of(primitive)) + ": mask " + hex(mask) + " names absent lane " +
            std::to_string(__builtin_ctz(mask & ~warp.present)) + ": the block ends before it");
  }
  self.waiting = true;
  self.primitive = primitive;
  self.mask = mask;
  self.value = value;
  self.source = source;
  self.site = site;
  auto meeting = std::find_if(
      warp.meetings.begin(), warp.meetings.end(), [&](const Meeting& m) { return m.mask == mask; });
  if (meeting == warp.meetings.end()) {
    warp.meetings.push_back({mask, 0, primitive, site});
    meeting = warp.meetings.end() - 1;
  } else if (meeting->primitive != primitive || !same_site(meeting->site, site)) {
    const Lane& other = lane_of(warp, __builtin_ctz(meeting->arrived));
    fail_at(
        self, site,
        std::string(name_of(primitive)) + " with mask " + hex(mask) + " meets lane " +
            std::to_string(other.number % kWarpLanes) + ", " + whereabouts(other));
  }
  meeting->arrived |= bit;
  if (meeting->arrived == mask) {
    complete(warp, *meeting);
    *meeting = warp.meetings.back();
    warp.meetings.pop_back();
  } else {
    clear_ready(warp, bit);
  }
  suspend();
  return self.result;
}

// Results are handed out here, all at once: a lane may be far ahead when another comes to look.
void Machine::complete(Warp& warp, const Meeting& meeting) {
  unsigned votes = 0;
  for (unsigned rest = meeting.mask; rest != 0; rest &= rest - 1) {
    const int i = __builtin_ctz(rest);
    votes |= static_cast<unsigned>(lane_of(warp, i).value & 1) << i;
  }
  for (unsigned rest = meeting.mask; rest != 0; rest &= rest - 1) {
    Lane& lane = lane_of(warp, __builtin_ctz(rest));
    lane.waiting = false;
    switch (meeting.primitive) {
      case Primitive::kBallot:
        lane.result = votes;
        break;
      case Primitive::kAny:
        lane.result = votes != 0;
        break;
      case Primitive::kAll:
        lane.result = votes == meeting.mask;
        break;
      case Primitive::kSyncwarp:
        break;
      default:
        if ((meeting.mask >> lane.source & 1) == 0) {
          fail_at(
              lane, lane.site,
              std::string(name_of(meeting.primitive)) + " reads lane " +
                  std::to_string(lane.source) + ", which mask " + hex(meeting.mask) +
                  " does not name");
        }
        lane.result = lane_of(warp, lane.source).value;
    }
  }
  set_ready(warp, meeting.mask);
}

void Machine::meet_block(Site site) {
  Lane& self = *current_;
  self.waiting = true;
  self.primitive = Primitive::kSyncthreads;
  self.site = site;
  if (num_at_barrier_ == 0) {
    barrier_site_ = site;
  } else if (!same_site(site, barrier_site_)) {
    fail_at(
        self, site,
        "__syncthreads, while others wait at another one (" + to_string(barrier_site_) + ")");
  }
  clear_ready(warp_of(self), 1u << (self.number % kWarpLanes));
  if (++num_at_barrier_ == num_lanes_) {
    num_at_barrier_ = 0;
    for (int i = 0; i < num_lanes_; ++i) {
      lanes_[i].waiting = false;
    }
    for (int w = 0; w * kWarpLanes < num_lanes_; ++w) {
      set_ready(warps_[w], warps_[w].present);
    }
  }
  suspend();
}

void Machine::report_deadlock() {
  // Meetings of warps first: a lane missed there is the cause where a barrier waits too.
  for (int i = 0; i < num_lanes_; ++i) {
    const Lane& lane = lanes_[i];
    if (!lane.waiting || lane.primitive == Primitive::kSyncthreads) {
      continue;
    }
    for (unsigned rest = lane.mask; rest != 0; rest &= rest - 1) {
      const Lane& missed = lane_of(warp_of(lane), __builtin_ctz(rest));
      const bool here =
          missed.waiting && missed.primitive == lane.primitive && missed.mask == lane.mask;
      if (!here) {
        fail_at(
            lane, lane.site,
            std::string(name_of(lane.primitive)) + " with mask " + hex(lane.mask) +
                " waits for lane " + std::to_string(missed.number % kWarpLanes) + ", " +
                whereabouts(missed));
      }
    }
  }
  const auto end = lanes_.begin() + num_lanes_;
  const auto at_barrier =
      std::find_if(lanes_.begin(), end, [](const Lane& l) { return l.waiting; });
  const auto missed = std::find_if(lanes_.begin(), end, [](const Lane& l) { return !l.waiting; });
  fail_at(
      *at_barrier, at_barrier->site,
      "__syncthreads waits for thread " + index_text(missed->index, blockDim) + ", " +
          whereabouts(*missed));
}

}  // namespace kgrec::cuda_host
