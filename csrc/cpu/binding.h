// What bindings of the CPU library share besides common/binding.h.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "common/binding.h"
#include "common/philox.h"

namespace kgrec {

inline void check_device(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.is_cpu(), name, " is expected on the CPU");
}

}  // namespace kgrec

namespace kgrec::cpu {

// That of an op which takes float32 and float64 alone.
inline DType whole_dtype_of(const Tensor& x, const char* name) {
  const DType dtype = dtype_of(x, name);
  STD_TORCH_CHECK(element_bytes(dtype) > 2, name, " is expected in float32 or float64");
  return dtype;
}

// What a random op draws from `rng`, its (seed, step).
inline PhiloxDraw draw_of(const Tensor& rng, int64_t stream) {
  const int64_t* seed_step = flat<int64_t>(rng, "rng", 2);
  return philox_draw(seed_step[0], seed_step[1], stream);
}

inline SlotView slots(const Graph& graph) {
  SlotView view;
  view.num_relations = graph[kSlotPtr].numel() - 1;
  view.num_slots = graph[kSlotPerm].numel();
  view.slot = flat<int32_t>(graph[kSlot], "slot", graph[kSlot].numel());
  view.slot_ptr = flat<int64_t>(graph[kSlotPtr], "slot_ptr", view.num_relations + 1);
  view.slot_perm = flat<int32_t>(graph[kSlotPerm], "slot_perm", view.num_slots);
  return view;
}

// Column order under a mask that is read through the positions of the edges: it is small enough for
// the caches, so no copy in column order is wanted here.
inline OrderView masked_columns(
    const Graph& graph, const std::optional<Tensor>& row_mask,
    const std::optional<Tensor>& col_mask) {
  STD_TORCH_CHECK(row_mask || !col_mask, "col_mask is expected with row_mask only");
  OrderView view = column_order(graph, std::nullopt);
  view.mask = mask_of(row_mask, view.num_edges);
  view.mask_by_pos = row_mask.has_value();
  return view;
}

// Rows that no edge can reach.
inline void zero_rows_from(Tensor& x, int64_t first) {
  const int64_t row_bytes = x.size(1) * int64_t(x.element_size());
  const int64_t bytes = (x.size(0) - first) * row_bytes;
  if (bytes > 0) {  // else there may be no memory
    std::memset(static_cast<char*>(x.mutable_data_ptr()) + first * row_bytes, 0, size_t(bytes));
  }
}

// f(begin, end) over rows on torch's threads, each with work worth its start.
template <class F>
void parallel_rows(int64_t rows, int64_t width, const F& f) {
  constexpr int64_t kGrainElements = 1 << 14;
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(width, 1));
  torch::stable::parallel_for(0, rows, grain, f);
}

// f(begin, end) over [0, count) on torch's threads, whole parts each. A mask may leave half of the
// parts with nothing to do, and a core may be lent to others for a while: every thread takes from a
// share of its own, whose memory its caches may still hold, and then from what others have left.
template <class F>
void parallel_parts(int64_t count, const F& f) {
  constexpr int64_t kBlocks = 32;  // that a share is taken in
  struct alignas(64) Share {       // a line of the cache each
    std::atomic<int64_t> next;
    int64_t end;
  };
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), count);
  if (threads <= 1) {
    if (count > 0) {
      f(0, count);
    }
    return;
  }
  const int64_t block = std::max<int64_t>(1, count / (threads * kBlocks));
  std::vector<Share> shares(threads);
  for (int64_t t = 0; t < threads; ++t) {
    shares[t].next = t * count / threads;
    shares[t].end = (t + 1) * count / threads;
  }
  const auto run = [&](Share& share) {
    for (;;) {
      const int64_t begin = share.next.fetch_add(block, std::memory_order_relaxed);
      if (begin >= share.end) {
        return;
      }
      f(begin, std::min(begin + block, share.end));
    }
  };
  torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = 0; i < threads; ++i) {
      run(shares[(first + i) % threads]);
    }
  });
}

// A matrix of zeros, written (and so mapped) by all threads.
inline Tensor make_zeros(const Tensor& like, int64_t rows, int64_t width, ScalarType dtype) {
  Tensor x = make(like, {rows, width}, dtype);
  char* data = static_cast<char*>(x.mutable_data_ptr());
  const int64_t row_bytes = width * int64_t(x.element_size());
  parallel_parts(rows, [&](int64_t begin, int64_t end) {
    std::memset(data + begin * row_bytes, 0, size_t((end - begin) * row_bytes));
  });
  return x;
}

}  // namespace kgrec::cpu
