// What bindings share: checks with a sentence, views of tensors, allocation, parallel loops.
#pragma once

#include <cstring>
#include <optional>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "common/graph_view.h"
#include "common/types.h"

namespace kgrec::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Graph = std::vector<Tensor>;

// Places in the list that kgrec_fast.graph hands to every op.
enum GraphIndex : size_t {
  kRowPtr,
  kHead,
  kCol,
  kRel,
  kPerm,
  kPart,
  kSlot,
  kSlotPtr,
  kSlotPerm,
  kRowTensors,
  kColPtr = kRowTensors,
  kColRow,
  kColRel,
  kColPos,
  kColPart,
  kAllTensors
};

inline DType dtype_of(const Tensor& x, const char* name) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    default:
      STD_TORCH_CHECK(
          false, name, " has dtype ", torch::headeronly::toString(x.scalar_type()),
          ", expected float32, float64, bfloat16 or float16");
  }
}

inline ScalarType accumulate_type(DType dtype) {
  return dtype == DType::f64 ? ScalarType::Double : ScalarType::Float;
}

// `x` with unit stride in its rows: itself, or a copy.
inline Tensor row_strided(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.dim() == 2, name, " has ", x.dim(), " dimensions, expected 2");
  STD_TORCH_CHECK(x.is_cpu(), name, " is expected on the CPU");
  return x.size(1) == 1 || x.stride(1) == 1 ? x : torch::stable::contiguous(x);
}

inline Matrix matrix(const Tensor& x) {
  return {x.const_data_ptr(), x.stride(0)};
}

// A row-strided operand of the dtype and width of `like`, with at least `rows` rows.
inline Tensor operand(const Tensor& x, const char* name, int64_t rows, const Tensor& like) {
  STD_TORCH_CHECK(
      x.scalar_type() == like.scalar_type(), name, " has dtype ",
      torch::headeronly::toString(x.scalar_type()), ", expected ",
      torch::headeronly::toString(like.scalar_type()));
  Tensor y = row_strided(x, name);
  STD_TORCH_CHECK(
      y.size(1) == like.size(1), name, " has ", y.size(1), " columns, expected ", like.size(1));
  STD_TORCH_CHECK(y.size(0) >= rows, name, " has ", y.size(0), " rows, expected at least ", rows);
  return y;
}

template <class T>
const T* flat(const Tensor& x, const char* name, int64_t size) {
  STD_TORCH_CHECK(x.is_cpu(), name, " is expected on the CPU");
  STD_TORCH_CHECK(x.is_contiguous(), name, " is expected to be contiguous");
  STD_TORCH_CHECK(x.numel() == size, name, " has ", x.numel(), " elements, expected ", size);
  return x.const_data_ptr<T>();
}

inline const uint8_t* mask_of(const std::optional<Tensor>& mask, int64_t num_edges) {
  return mask ? reinterpret_cast<const uint8_t*>(flat<bool>(*mask, "mask", num_edges)) : nullptr;
}

inline void check_graph(const Graph& graph, bool columns) {
  const size_t wanted = columns ? kAllTensors : kRowTensors;
  STD_TORCH_CHECK(
      graph.size() >= wanted, "graph has ", graph.size(), " tensors, expected ", wanted,
      columns ? " (with the column order)" : "");
}

inline void set_parts(OrderView& view, const Tensor& part) {
  view.num_parts = part.size(1) - 1;
  view.part_row = flat<int64_t>(part, "part", 2 * (view.num_parts + 1));
  view.part_edge = view.part_row + view.num_parts + 1;
}

inline OrderView row_order(const Graph& graph, const std::optional<Tensor>& row_mask) {
  check_graph(graph, false);
  OrderView view;
  view.num_rows = graph[kRowPtr].numel() - 1;
  view.num_edges = graph[kCol].numel();
  view.ptr = flat<int64_t>(graph[kRowPtr], "rowptr", view.num_rows + 1);
  view.idx = flat<int32_t>(graph[kCol], "col", view.num_edges);
  view.rel = graph[kRel].numel() ? flat<int32_t>(graph[kRel], "rel", view.num_edges) : nullptr;
  view.mask = mask_of(row_mask, view.num_edges);
  set_parts(view, graph[kPart]);
  return view;
}

inline OrderView column_order(const Graph& graph, const std::optional<Tensor>& col_mask) {
  check_graph(graph, true);
  OrderView view;
  view.num_rows = graph[kColPtr].numel() - 1;
  view.num_edges = graph[kCol].numel();
  view.ptr = flat<int64_t>(graph[kColPtr], "colptr", view.num_rows + 1);
  view.idx = flat<int32_t>(graph[kColRow], "row", view.num_edges);
  view.rel = graph[kRel].numel() ? flat<int32_t>(graph[kColRel], "rel", view.num_edges) : nullptr;
  view.pos = flat<int32_t>(graph[kColPos], "pos", view.num_edges);
  view.mask = mask_of(col_mask, view.num_edges);
  set_parts(view, graph[kColPart]);
  return view;
}

// A mask restricts both orders or neither.
inline void check_masks(
    const std::optional<Tensor>& row_mask, const std::optional<Tensor>& col_mask) {
  STD_TORCH_CHECK(
      row_mask.has_value() == col_mask.has_value(),
      "row_mask and col_mask are expected together, or neither");
}

inline void check_relations(const OrderView& order) {
  STD_TORCH_CHECK(order.rel != nullptr || order.num_edges == 0, "graph is expected with relations");
}

inline void check_heads(int64_t num_heads, int64_t width) {
  STD_TORCH_CHECK(
      num_heads > 0 && width > 0 && width % num_heads == 0, "num_heads is ", num_heads,
      ", expected a divisor of the width ", width);
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

inline Tensor make(const Tensor& like, std::vector<int64_t> size, ScalarType dtype) {
  return torch::stable::new_empty(like, size, dtype);
}

// Rows that no edge can reach.
inline void zero_rows_from(Tensor& x, int64_t first) {
  const int64_t row_bytes = x.size(1) * int64_t(x.element_size());
  std::memset(
      static_cast<char*>(x.mutable_data_ptr()) + first * row_bytes, 0,
      size_t((x.size(0) - first) * row_bytes));
}

// f(begin, end) over [0, count) on torch's threads, whole parts each.
template <class F>
void parallel_parts(int64_t count, const F& f) {
  if (count > 0) {
    torch::stable::parallel_for(0, count, 1, f);
  }
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
