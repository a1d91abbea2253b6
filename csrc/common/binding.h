// What the bindings of both libraries share: checks with a sentence, views of tensors, allocation.
#pragma once

#include <optional>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "common/graph_view.h"
#include "common/types.h"

namespace kgrec {

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

// Places in what follows there on CUDA: the plan of the rows and runs, then that of the columns.
enum PlanIndex : size_t {
  kShortRow,
  kLongRow,
  kChunk,
  kHub,
  kRunPlace,
  kRunTile,
  kRunPerm,
  kRunPiece,
  kRunSum
};
constexpr size_t kColPlanTensors = kRunPlace;
constexpr size_t kRowPlanTensors = kRunSum + 1;

// That `x` is on the device of this library: cpu/binding.h and cuda/binding.h define it.
inline void check_device(const Tensor& x, const char* name);

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
  check_device(x, name);
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
  check_device(x, name);
  STD_TORCH_CHECK(x.is_contiguous(), name, " is expected to be contiguous");
  STD_TORCH_CHECK(x.numel() == size, name, " has ", x.numel(), " elements, expected ", size);
  return x.const_data_ptr<T>();
}

// Numbers in the type of sums, contiguous: what a forward pass has kept, say.
inline const void* kept(const Tensor& x, const char* name, int64_t size, DType dtype) {
  check_device(x, name);
  STD_TORCH_CHECK(
      x.scalar_type() == accumulate_type(dtype) && x.is_contiguous() && x.numel() == size, name,
      " is expected as ", size, " contiguous numbers in the type of sums");
  return x.const_data_ptr();
}

// Edges that the rows of attention have beside the graph.
inline const void* zero_edges_of(
    const std::optional<Tensor>& count, const OrderView& row, DType dtype) {
  return count ? kept(*count, "zero_edges", row.num_rows, dtype) : nullptr;
}

inline const uint8_t* mask_of(const std::optional<Tensor>& mask, int64_t num_edges) {
  return mask ? reinterpret_cast<const uint8_t*>(flat<bool>(*mask, "mask", num_edges)) : nullptr;
}

// With the plan, as on CUDA, or without it.
inline bool has_columns(const Graph& graph) {
  return graph.size() == kAllTensors ||
         graph.size() == kAllTensors + kRowPlanTensors + kColPlanTensors;
}

inline void check_graph(const Graph& graph, bool columns) {
  const bool complete = has_columns(graph);
  STD_TORCH_CHECK(
      complete || graph.size() == kRowTensors || graph.size() == kRowTensors + kRowPlanTensors,
      "graph has ", graph.size(), " tensors, expected those of kgrec_fast.graph");
  STD_TORCH_CHECK(complete || !columns, "graph is expected with the column order");
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

inline Tensor make(const Tensor& like, std::vector<int64_t> size, ScalarType dtype) {
  return torch::stable::new_empty(like, size, dtype);
}

}  // namespace kgrec
