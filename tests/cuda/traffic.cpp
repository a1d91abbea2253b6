#include "traffic.h"

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <tuple>

#include "memory.h"

namespace kgrec::cuda_host {
namespace {

constexpr int64_t kSectorBytes = 32;
constexpr int kMaxSectors = 2 * kWarpLanes;  // an access of a lane lies in two at most

// One execution by a warp: the sectors that its lanes have asked for so far.
struct Execution {
  int count = 0;
  int64_t sectors[kMaxSectors];
};

struct Counter {
  Traffic total;
  std::array<uint32_t, kMaxBlockLanes> times{};  // how often each lane has come
  std::array<std::vector<Execution>, kMaxBlockLanes / kWarpLanes> warps;
};

using Key = std::tuple<const char*, int, uint32_t, bool>;
std::map<Key, std::unique_ptr<Counter>> counters;

void add_sector(Execution& execution, int64_t sector) {
  int64_t* end = execution.sectors + execution.count;
  // Neighbouring lanes share sectors: the last one first.
  const auto found = std::find(
      std::make_reverse_iterator(end), std::make_reverse_iterator(execution.sectors + 0), sector);
  if (found == std::make_reverse_iterator(execution.sectors + 0)) {
    *end = sector;
    ++execution.count;
  }
}

}  // namespace

void count_access_slow(uint32_t range, int64_t offset, size_t bytes, bool write, Site site) {
  std::unique_ptr<Counter>& slot = counters[{site.file, site.line, range, write}];
  if (slot == nullptr) {
    slot = std::make_unique<Counter>();
    slot->total = {to_string(site), range_name(range), write, 0, 0, 0};
  }
  Counter& counter = *slot;
  const int warp = current_warp();
  const uint32_t time = counter.times[warp * kWarpLanes + current_lane()]++;
  std::vector<Execution>& executions = counter.warps[warp];
  if (time >= executions.size()) {
    executions.resize(time + 1);
  }
  counter.total.bytes += bytes;
  const int64_t first = offset / kSectorBytes;
  const int64_t last = (offset + static_cast<int64_t>(bytes) - 1) / kSectorBytes;
  add_sector(executions[time], first);
  if (last != first) {
    add_sector(executions[time], last);
  }
}

void end_block_traffic() {
  for (auto& [key, counter] : counters) {
    for (std::vector<Execution>& executions : counter->warps) {
      for (const Execution& execution : executions) {
        ++counter->total.executions;
        counter->total.sectors += execution.count;
      }
      executions.clear();
    }
    counter->times.fill(0);
  }
}

void count_traffic(bool on) {
  counting = on;
  counters.clear();
}

std::vector<Traffic> counted_traffic() {
  std::vector<Traffic> all;
  for (const auto& [key, counter] : counters) {
    // Each unit of translation has a file name of its own for the same header.
    const Traffic& t = counter->total;
    const auto same = std::find_if(all.begin(), all.end(), [&](const Traffic& other) {
      return other.site == t.site && other.array == t.array && other.write == t.write;
    });
    if (same == all.end()) {
      all.push_back(t);
    } else {
      same->executions += t.executions;
      same->sectors += t.sectors;
      same->bytes += t.bytes;
    }
  }
  return all;
}

}  // namespace kgrec::cuda_host
