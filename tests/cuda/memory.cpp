#include "memory.h"

#include <array>
#include <cstring>

#include "traffic.h"

namespace kgrec::cuda_host {
namespace {

struct Range {
  const char* begin;
  const char* end;
  bool writable;
  std::string name;
};

struct SharedRange {
  const char* begin;
  const char* end;
};

std::vector<Range> ranges;
// The range that each line last touched: nearly always the one that it touches again.
std::array<uint32_t, 256> last_range{};

std::vector<SharedRange> shared;
std::vector<char> dynamic;
char* dynamic_begin = nullptr;
size_t dynamic_size = 0;

template <class R>
bool covers(const R& range, const char* p, size_t bytes) {
  return p >= range.begin && p + bytes <= range.end;
}

bool in_shared(const char* p, size_t bytes) {
  for (const SharedRange& range : shared) {
    if (covers(range, p, bytes)) {
      return true;
    }
  }
  return false;
}

// Where an address lies that is in no range, for the message.
std::string nearest(const char* p) {
  const Range* best = nullptr;
  int64_t distance = 0;
  for (const Range& range : ranges) {
    const int64_t d = p >= range.begin ? p - range.begin : range.begin - p;
    if (best == nullptr || d < distance) {
      best = &range;
      distance = d;
    }
  }
  if (best == nullptr) {
    return "no array was registered";
  }
  return "the nearest array is " + best->name + " of " + std::to_string(best->end - best->begin) +
         " bytes, from whose start it is " + std::to_string(p - best->begin) + " bytes away";
}

void check(const char* p, size_t bytes, size_t alignment, bool write, Site site) {
  const char* verb = write ? "write" : "read";
  if (reinterpret_cast<uintptr_t>(p) % alignment != 0) {
    fail(
        site, std::string("misaligned ") + verb + " of " + std::to_string(bytes) +
                  " bytes: address is " +
                  std::to_string(reinterpret_cast<uintptr_t>(p) % alignment) +
                  " past a multiple of " + std::to_string(alignment));
  }
  uint32_t& hint = last_range[static_cast<unsigned>(site.line) % last_range.size()];
  if (hint < ranges.size() && covers(ranges[hint], p, bytes) && (!write || ranges[hint].writable)) {
    count_access(hint, p - ranges[hint].begin, bytes, write, site);
    return;
  }
  const Range* read_only = nullptr;
  for (uint32_t i = 0; i < ranges.size(); ++i) {
    if (covers(ranges[i], p, bytes)) {
      if (!write || ranges[i].writable) {
        hint = i;
        count_access(i, p - ranges[i].begin, bytes, write, site);
        return;
      }
      read_only = &ranges[i];
    }
  }
  if (in_shared(p, bytes)) {
    return;
  }
  if (read_only != nullptr) {
    fail(
        site, "write to " + read_only->name + ", which is read-only, at byte " +
                  std::to_string(p - read_only->begin));
  }
  fail(
      site, std::string("out-of-bounds ") + verb + " of " + std::to_string(bytes) +
                " bytes: " + nearest(p));
}

}  // namespace

void allow_range(const void* begin, size_t bytes, bool writable, const std::string& name) {
  const char* p = static_cast<const char*>(begin);
  ranges.push_back({p, p + bytes, writable, name});
}

void forget_ranges() {
  ranges.clear();
}

const std::string& range_name(uint32_t range) {
  return ranges[range].name;
}

void check_read(const void* p, size_t bytes, size_t alignment, Site site) {
  check(static_cast<const char*>(p), bytes, alignment, false, site);
}

void check_write(const void* p, size_t bytes, size_t alignment, Site site) {
  check(static_cast<const char*>(p), bytes, alignment, true, site);
}

void begin_block_memory(size_t dynamic_bytes) {
  constexpr size_t kAlignment = 16;
  shared.clear();
  if (dynamic.size() != dynamic_bytes + kAlignment) {
    dynamic = std::vector<char>(dynamic_bytes + kAlignment);
  }
  const uintptr_t past = reinterpret_cast<uintptr_t>(dynamic.data()) % kAlignment;
  dynamic_begin = dynamic.data() + (kAlignment - past) % kAlignment;
  dynamic_size = dynamic_bytes;
  std::memset(dynamic_begin, 0xFF, dynamic_bytes);
  shared.push_back({dynamic_begin, dynamic_begin + dynamic_bytes});
}

void end_block_memory() {
  end_block_traffic();
}

void* enter_shared_array(void* storage, size_t bytes) {
  const char* begin = static_cast<const char*>(storage);
  for (const SharedRange& range : shared) {
    if (range.begin == begin) {
      return storage;
    }
  }
  std::memset(storage, 0xFF, bytes);
  shared.push_back({begin, begin + bytes});
  return storage;
}

void* dynamic_shared(size_t* bytes) {
  *bytes = dynamic_size;
  return dynamic_begin;
}

}  // namespace kgrec::cuda_host
