#include <algorithm>
#include <memory>
#include <numeric>
#include <tuple>
#include <vector>

#include "cpu/binding.h"
#include "cpu/mask_bits.h"

namespace kgrec::cpu {
namespace {

constexpr int64_t kRowGrain = 64;  // rows that are worth a thread

// How the work is cut: kept equal to kgrec_fast/graph_build.py by a test.
constexpr int64_t kMaxWholeRow = 2048;
constexpr int64_t kEdgeCost = 4;
constexpr int64_t kPartCost = 4 * 8192;
constexpr int64_t kMaxParts = 256;
constexpr int64_t kPartMultiple = 8;

// A stable order of the edges by their keys, which are below `size`: of those in `edges`, or all of
// them in their order. Writes where the edges of each key begin, and the end.
void sort_by(
    const int32_t* edges, int64_t count, const int32_t* key, int64_t size, int64_t* first,
    int32_t* sorted) {
  std::fill_n(first, size + 1, 0);
  for (int64_t i = 0; i < count; ++i) {
    ++first[key[i]];
  }
  for (int64_t k = 0; k < size; ++k) {
    first[k + 1] += first[k];
  }
  for (int64_t i = count - 1; i >= 0; --i) {  // from the end of each key down to where it begins
    const int32_t e = edges == nullptr ? int32_t(i) : edges[i];
    sorted[--first[key[e]]] = e;
  }
}

// f(e) for each edge of [begin, end) that a mask keeps: a mask is random, so they are listed some
// at a time without a branch.
template <class F>
void for_kept(const uint8_t* mask, int64_t begin, int64_t end, const F& f) {
  constexpr int64_t kTile = 256;
  int64_t list[kTile];
  for (int64_t tile = begin; tile < end; tile += kTile) {
    int64_t count = 0;
    for (int64_t e = tile; e < std::min(tile + kTile, end); ++e) {
      list[count] = e;
      count += mask == nullptr || mask[e] != 0;
    }
    for (int64_t i = 0; i < count; ++i) {
      f(list[i]);
    }
  }
}

// Numbers the tails anew: as those of `ids`, which are the first, then each tail once. Returns all.
Tensor number_tails(const Tensor& ids, int64_t num_cols, int32_t* tail, int64_t num_edges) {
  const int64_t* id = ids.const_data_ptr<int64_t>();
  std::vector<int64_t> nodes(id, id + ids.numel());
  std::vector<int32_t> place(num_cols, -1);
  for (int64_t e = 0; e < num_edges; ++e) {
    int32_t& number = place[tail[e]];
    if (number < 0) {
      number = int32_t(nodes.size());
      nodes.push_back(tail[e]);
    }
    tail[e] = number;
  }
  Tensor out = make(ids, {int64_t(nodes.size())}, ScalarType::Long);
  std::copy(nodes.begin(), nodes.end(), out.mutable_data_ptr<int64_t>());
  return out;
}

// Cuts the rows (columns) of an order and its edges into parts of like cost: (row, edge) of each
// boundary.
Tensor cut(const Tensor& pointers) {
  const int64_t num_rows = pointers.numel() - 1;
  const int64_t* ptr = pointers.const_data_ptr<int64_t>();
  const int64_t cost = num_rows + kEdgeCost * ptr[num_rows];
  int64_t parts = std::min(cost / kPartCost, kMaxParts);
  parts = parts <= 1 ? 1 : (parts + kPartMultiple - 1) / kPartMultiple * kPartMultiple;
  Tensor part = make(pointers, {2, parts + 1}, ScalarType::Long);
  int64_t* rows = part.mutable_data_ptr<int64_t>();
  int64_t* edges = rows + parts + 1;
  for (int64_t p = 0; p <= parts; ++p) {
    const int64_t target = p * cost / parts;
    int64_t row = 0, end = num_rows + 1;  // the last row before which there is no more than that
    while (row + 1 < end) {
      const int64_t middle = row + (end - row) / 2;
      (kEdgeCost * ptr[middle] + middle <= target ? row : end) = middle;
    }
    const int64_t length = ptr[std::min(row + 1, num_rows)] - ptr[row];
    const int64_t inside = (target - kEdgeCost * ptr[row] - row) / kEdgeCost;
    rows[p] = row;
    edges[p] = ptr[row] + (length > kMaxWholeRow ? std::min(inside, length) : 0);
  }
  return part;
}

struct Slots {
  Tensor of_edge, ptr, list;
};

// A slot for each pair of a part and a relation that occurs: that of every edge, and those of each
// relation in the order of the parts.
Slots make_slots(const Tensor& part, const Tensor& relation, int64_t num_relations) {
  const int64_t parts = part.size(1) - 1;
  const int64_t* first = part.const_data_ptr<int64_t>() + parts + 1;  // edge of each part
  const int32_t* rel = relation.const_data_ptr<int32_t>();
  Tensor of_edge = make(relation, {relation.numel()}, ScalarType::Int);
  int32_t* slot = of_edge.mutable_data_ptr<int32_t>();
  std::vector<int32_t> relations;  // of the slots
  std::vector<int32_t> number(num_relations);
  for (int64_t p = 0; p < parts && relation.numel() > 0; ++p) {
    std::fill(number.begin(), number.end(), -1);
    for (int64_t e = first[p]; e < first[p + 1]; ++e) {
      number[rel[e]] = 0;
    }
    for (int64_t r = 0; r < num_relations; ++r) {
      if (number[r] == 0) {
        number[r] = int32_t(relations.size());
        relations.push_back(int32_t(r));
      }
    }
    for (int64_t e = first[p]; e < first[p + 1]; ++e) {
      slot[e] = number[rel[e]];
    }
  }
  const int64_t count = int64_t(relations.size());
  Tensor ptr = make(relation, {num_relations + 1}, ScalarType::Long);
  Tensor list = make(relation, {count}, ScalarType::Int);
  sort_by(
      nullptr, count, relations.data(), num_relations, ptr.mutable_data_ptr<int64_t>(),
      list.mutable_data_ptr<int32_t>());
  return {of_edge, ptr, list};
}

// Row order: rowptr, head, tail, relation, position in the graph, perm (from 0 on: the caller's
// order is row order), parts, slots, pointers and list of these by relation. Column order: colptr,
// head, relation, position in the subgraph, parts. Then the nodes, if it has nodes of its own. What
// is read of the graph is read on all threads; these are the edges of a batch, and the rest is on
// one.
std::tuple<
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
    Tensor, Tensor, Tensor, Tensor>
row_subgraph(
    const Graph& graph, const std::optional<Tensor>& row_mask, const Tensor& ids, bool own_nodes,
    int64_t num_cols, int64_t num_relations) {
  const OrderView rows = row_order(graph, row_mask);
  const int64_t num_ids = ids.numel();
  const int64_t* id = flat<int64_t>(ids, "ids", num_ids);
  for (int64_t i = 0; i < num_ids; ++i) {
    STD_TORCH_CHECK(
        id[i] >= 0 && id[i] < rows.num_rows, "ids[", i, "] is ", id[i], ", expected 0 <= id < ",
        rows.num_rows);
  }
  const auto for_ids = [&](const auto& f) {  // f(i, first edge, end)
    torch::stable::parallel_for(0, num_ids, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        f(i, rows.ptr[id[i]], rows.ptr[id[i] + 1]);
      }
    });
  };
  const Tensor rowptr = make(ids, {num_ids + 1}, ScalarType::Long);
  int64_t* row = rowptr.mutable_data_ptr<int64_t>();
  row[0] = 0;
  for_ids([&](int64_t i, int64_t begin, int64_t end) {
    row[i + 1] = count_kept(rows.mask, nullptr, begin, end);
  });
  for (int64_t i = 0; i < num_ids; ++i) {
    row[i + 1] += row[i];
  }

  const int64_t edges = row[num_ids], edges_with_relation = rows.rel == nullptr ? 0 : edges;
  const auto make_numbers = [&](int64_t size) { return make(ids, {size}, ScalarType::Int); };
  const Tensor head = make_numbers(edges), tail = make_numbers(edges),
               position = make_numbers(edges);
  const Tensor relation = make_numbers(edges_with_relation), perm = make_numbers(edges);
  std::iota(perm.mutable_data_ptr<int32_t>(), perm.mutable_data_ptr<int32_t>() + edges, 0);
  int32_t* heads = head.mutable_data_ptr<int32_t>();
  int32_t* tails = tail.mutable_data_ptr<int32_t>();
  int32_t* positions = position.mutable_data_ptr<int32_t>();
  int32_t* relations = relation.mutable_data_ptr<int32_t>();
  for_ids([&](int64_t i, int64_t begin, int64_t end) {
    int64_t at = row[i];
    for_kept(rows.mask, begin, end, [&](int64_t e) {
      heads[at] = int32_t(i);
      tails[at] = rows.idx[e];
      positions[at] = int32_t(e);
      if (rows.rel != nullptr) {
        relations[at] = rows.rel[e];
      }
      ++at;
    });
  });

  const Tensor nodes =
      own_nodes ? number_tails(ids, num_cols, tails, edges) : make(ids, {0}, ScalarType::Long);
  const int64_t num_nodes = own_nodes ? nodes.numel() : num_cols;
  const Tensor colptr = make(ids, {num_nodes + 1}, ScalarType::Long);
  const Tensor col_pos = make_numbers(edges);
  std::unique_ptr<int32_t[]> by_relation;
  if (rows.rel != nullptr) {
    by_relation.reset(new int32_t[edges]);
    std::vector<int64_t> first(num_relations + 1);
    sort_by(nullptr, edges, relations, num_relations, first.data(), by_relation.get());
  }
  int32_t* order = col_pos.mutable_data_ptr<int32_t>();
  sort_by(by_relation.get(), edges, tails, num_nodes, colptr.mutable_data_ptr<int64_t>(), order);

  const Tensor col_row = make_numbers(edges), col_rel = make_numbers(edges_with_relation);
  int32_t* col_rows = col_row.mutable_data_ptr<int32_t>();
  int32_t* col_relations = col_rel.mutable_data_ptr<int32_t>();
  for (int64_t e = 0; e < edges; ++e) {
    col_rows[e] = heads[order[e]];
    if (rows.rel != nullptr) {
      col_relations[e] = relations[order[e]];
    }
  }
  const Tensor part = cut(rowptr);
  const Slots slots = make_slots(part, relation, num_relations);
  return {rowptr,    head,       tail,   relation, position, perm,    part,        slots.of_edge,
          slots.ptr, slots.list, colptr, col_row,  col_rel,  col_pos, cut(colptr), nodes};
}

}  // namespace
}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CPU, m) {
  m.impl("row_subgraph", TORCH_BOX(&kgrec::cpu::row_subgraph));
}
