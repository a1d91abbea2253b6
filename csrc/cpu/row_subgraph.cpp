#include <tuple>
#include <vector>

#include "cpu/binding.h"

namespace kgrec::cpu {
namespace {

// The places of `edges` in a stable order of their keys, which are below `size`.
std::vector<int32_t> sorted_by(
    const std::vector<int32_t>& edges, const int32_t* key, int64_t size,
    std::vector<int64_t>& first) {
  first.assign(size + 1, 0);
  for (const int32_t e : edges) {
    ++first[key[e] + 1];
  }
  for (int64_t k = 0; k < size; ++k) {
    first[k + 1] += first[k];
  }
  std::vector<int64_t> next(first.begin(), first.end() - 1);
  std::vector<int32_t> sorted(edges.size());
  for (const int32_t e : edges) {
    sorted[next[key[e]]++] = e;
  }
  return sorted;
}

template <class To>
Tensor tensor_of(const std::vector<To>& values, const Tensor& like, ScalarType dtype) {
  Tensor x = make(like, {int64_t(values.size())}, dtype);
  std::copy(values.begin(), values.end(), x.mutable_data_ptr<To>());
  return x;
}

// Row order: rowptr, head, tail, relation, position in the graph. Column order: colptr, head,
// relation, position in the subgraph. Then the nodes, if it has nodes of its own. On one thread:
// these are the edges of a batch.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
row_subgraph(
    const Graph& graph, const std::optional<Tensor>& row_mask, const Tensor& ids, bool own_nodes,
    int64_t num_cols, int64_t num_relations) {
  const OrderView rows = row_order(graph, row_mask);
  const int64_t num_ids = ids.numel();
  const int64_t* id = flat<int64_t>(ids, "ids", num_ids);
  std::vector<int64_t> rowptr(num_ids + 1, 0);
  std::vector<int32_t> head, tail, relation, position;
  for (int64_t i = 0; i < num_ids; ++i) {
    STD_TORCH_CHECK(
        id[i] >= 0 && id[i] < rows.num_rows, "ids[", i, "] is ", id[i], ", expected 0 <= id < ",
        rows.num_rows);
    for (int64_t e = rows.ptr[id[i]]; e < rows.ptr[id[i] + 1]; ++e) {
      if (rows.mask == nullptr || rows.mask[e] != 0) {
        position.push_back(int32_t(e));
        head.push_back(int32_t(i));
      }
    }
    rowptr[i + 1] = int64_t(position.size());
  }

  std::vector<int64_t> nodes;
  std::vector<int32_t> place;  // of a tail among the nodes
  if (own_nodes) {
    nodes.assign(id, id + num_ids);
    place.assign(num_cols, -1);
  }
  for (const int32_t e : position) {
    int32_t t = rows.idx[e];
    if (own_nodes) {
      if (place[t] < 0) {
        place[t] = int32_t(nodes.size());
        nodes.push_back(t);
      }
      t = place[t];
    }
    tail.push_back(t);
    if (rows.rel != nullptr) {
      relation.push_back(rows.rel[e]);
    }
  }

  const int64_t edges = int64_t(position.size());
  std::vector<int32_t> order(edges);
  for (int64_t e = 0; e < edges; ++e) {
    order[e] = int32_t(e);
  }
  std::vector<int64_t> colptr;
  if (rows.rel != nullptr) {
    order = sorted_by(order, relation.data(), num_relations, colptr);
  }
  order = sorted_by(order, tail.data(), own_nodes ? int64_t(nodes.size()) : num_cols, colptr);
  std::vector<int32_t> col_row(edges), col_rel(relation.size());
  for (int64_t e = 0; e < edges; ++e) {
    col_row[e] = head[order[e]];
    if (rows.rel != nullptr) {
      col_rel[e] = relation[order[e]];
    }
  }
  const Tensor& like = ids;
  constexpr ScalarType kInt = ScalarType::Int, kLong = ScalarType::Long;
  return {tensor_of(rowptr, like, kLong),  tensor_of(head, like, kInt),
          tensor_of(tail, like, kInt),     tensor_of(relation, like, kInt),
          tensor_of(position, like, kInt), tensor_of(colptr, like, kLong),
          tensor_of(col_row, like, kInt),  tensor_of(col_rel, like, kInt),
          tensor_of(order, like, kInt),    tensor_of(nodes, like, kLong)};
}

}  // namespace
}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CPU, m) {
  m.impl("row_subgraph", TORCH_BOX(&kgrec::cpu::row_subgraph));
}
