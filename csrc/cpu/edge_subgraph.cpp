#include "cpu/edge_subgraph.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <tuple>
#include <vector>

#include "cpu/binding.h"

#define KGREC_KERNELS "cpu/edge_subgraph_kernels.h"
#include "cpu/foreach_isa.h"

namespace kgrec::cpu {
namespace {

constexpr int64_t kBlockEdges = kBlockWords * kWordEdges;

// A number of each edge, null for its position, and where those of kept edges go.
struct Numbers {
  const int32_t* from;
  int32_t* to;
};

// Which edges of an order are kept: first marked, then counted and taken, by blocks.
class KeptEdgesOf {
 public:
  explicit KeptEdgesOf(int64_t num_edges)
      : num_edges_(num_edges),
        num_words_(num_edges / kWordEdges + 1),  // with that of the end
        bits_(new uint64_t[num_words_]),
        before_(new int32_t[num_words_]),
        first_((num_words_ + kBlockWords - 1) / kBlockWords + 1) {}

  // f(first, count, bits) marks the edges of a block and returns how many are kept.
  template <class F>
  void mark(const F& f) {
    bits_[num_words_ - 1] = 0;  // of the end no edge may be left to mark
    for_blocks([&](int64_t b) {
      const int64_t first = b * kBlockEdges;
      const int64_t count = std::min(kBlockEdges, num_edges_ - first);
      first_[b + 1] = f(first, count, &bits_[b * kBlockWords]);
    });
    for (size_t b = 1; b < first_.size(); ++b) {
      first_[b] += first_[b - 1];
    }
  }

  // After `mark`: counts, and writes those numbers of the kept edges side by side, which also
  // f(first edge of a block, first kept edge, their number) may do.
  template <class F>
  void take(const std::vector<Numbers>& numbers, const F& f) {
    for_blocks([&](int64_t b) {
      const int64_t word = b * kBlockWords, edge = b * kBlockEdges;
      const int64_t num_words = std::min(kBlockWords, num_words_ - word);
      KGREC_ISA_CALL(count_words, &bits_[word], num_words, first_[b], &before_[word]);
      for (const Numbers& x : numbers) {
        const int32_t* from = x.from == nullptr ? nullptr : x.from + edge;
        KGREC_ISA_CALL(take_kept, &bits_[word], num_words, from, edge, x.to + first_[b]);
      }
      f(edge, first_[b], first_[b + 1] - first_[b]);
    });
  }

  int64_t size() const { return first_.back(); }
  KeptWords words() const { return {bits_.get(), before_.get()}; }

 private:
  template <class F>
  void for_blocks(const F& f) const {
    parallel_parts(int64_t(first_.size()) - 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        f(b);
      }
    });
  }

  int64_t num_edges_, num_words_;
  std::unique_ptr<uint64_t[]> bits_;
  std::unique_ptr<int32_t[]> before_;
  std::vector<int64_t> first_;  // kept edge of each block, and the end
};

Tensor edges_of(const KeptEdgesOf& kept, const Tensor& like) {
  return make(like, {kept.size()}, ScalarType::Int);
}

// Boundaries between edges, counted in kept ones.
void count(const int64_t* edge, int64_t size, const KeptEdgesOf& kept, int64_t* to) {
  torch::stable::parallel_for(0, size, 1 << 14, [&](int64_t begin, int64_t end) {
    KGREC_ISA_CALL(count_boundaries, kept.words(), edge + begin, end - begin, to + begin);
  });
}

// The pointers of the rows.
Tensor pointers_of(const OrderView& order, const Tensor& like, const KeptEdgesOf& kept) {
  Tensor ptr = make(like, {order.num_rows + 1}, ScalarType::Long);
  count(order.ptr, order.num_rows + 1, kept, ptr.mutable_data_ptr<int64_t>());
  return ptr;
}

// The parts of the graph, counted in kept edges: so the slot of a relation stays that of its part.
Tensor parts_of(const OrderView& order, const Tensor& like, const KeptEdgesOf& kept) {
  const int64_t size = order.num_parts + 1;
  Tensor part = make(like, {2, size}, ScalarType::Long);
  int64_t* rows = part.mutable_data_ptr<int64_t>();
  std::copy_n(order.part_row, size, rows);  // these are no edges: there may be more than edges
  count(order.part_edge, size, kept, rows + size);
  return part;
}

// Row order: rowptr, head, tail, relation, position in the graph, perm (from 0 on: the caller's
// order is row order), parts, slots. Column order, if it is there, else nothing: colptr, head,
// relation, position in the subgraph, parts.
std::tuple<
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
    Tensor>
edge_subgraph(const Graph& graph, const Tensor& row_mask) {
  const OrderView rows = row_order(graph, row_mask);
  const Tensor& like = graph[kCol];
  const Tensor none = make(like, {0}, ScalarType::Int);
  KeptEdgesOf kept(rows.num_edges);
  kept.mark([&](int64_t first, int64_t count, uint64_t* bits) {
    return KGREC_ISA_CALL(mark_rows, rows.mask + first, count, bits);
  });

  const int32_t* heads = flat<int32_t>(graph[kHead], "head", rows.num_edges);
  Tensor head = edges_of(kept, like), tail = edges_of(kept, like), position = edges_of(kept, like);
  const Tensor perm = edges_of(kept, like);
  Tensor relation = none, slot = none;
  std::vector<Numbers> numbers{
      {heads, head.mutable_data_ptr<int32_t>()},
      {rows.idx, tail.mutable_data_ptr<int32_t>()},
      {nullptr, position.mutable_data_ptr<int32_t>()}};
  if (rows.rel != nullptr) {
    relation = edges_of(kept, like);
    numbers.push_back({rows.rel, relation.mutable_data_ptr<int32_t>()});
  }
  if (graph[kSlot].numel() > 0) {
    slot = edges_of(kept, like);
    numbers.push_back(
        {flat<int32_t>(graph[kSlot], "slot", rows.num_edges), slot.mutable_data_ptr<int32_t>()});
  }
  int32_t* edges = perm.mutable_data_ptr<int32_t>();
  kept.take(numbers, [&](int64_t, int64_t first, int64_t count) {
    std::iota(&edges[first], &edges[first + count], int32_t(first));
  });
  const Tensor rowptr = pointers_of(rows, like, kept);
  const Tensor part = parts_of(rows, like, kept);
  if (!has_columns(graph)) {
    return {rowptr, head, tail, relation, position, perm, part, slot, none, none, none, none, none};
  }

  const OrderView columns = column_order(graph, std::nullopt);
  KeptEdgesOf kept_there(columns.num_edges);
  const std::unique_ptr<int32_t[]> place(new int32_t[columns.num_edges]);
  kept_there.mark([&](int64_t first, int64_t count, uint64_t* bits) {
    return KGREC_ISA_CALL(
        mark_columns, columns.pos + first, count, kept.words(), bits, &place[first]);
  });
  Tensor col_row = edges_of(kept, like), col_pos = edges_of(kept, like), col_rel = none;
  numbers = {{columns.idx, col_row.mutable_data_ptr<int32_t>()}};
  if (columns.rel != nullptr) {
    col_rel = edges_of(kept, like);
    numbers.push_back({columns.rel, col_rel.mutable_data_ptr<int32_t>()});
  }
  int32_t* to_col_pos = col_pos.mutable_data_ptr<int32_t>();
  kept_there.take(numbers, [&](int64_t edge, int64_t first, int64_t count) {
    std::copy_n(&place[edge], count, to_col_pos + first);
  });
  const Tensor colptr = pointers_of(columns, like, kept_there);
  const Tensor col_part = parts_of(columns, like, kept_there);
  return {rowptr, head,   tail,    relation, position, perm,    part,
          slot,   colptr, col_row, col_rel,  col_pos,  col_part};
}

}  // namespace
}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CPU, m) {
  m.impl("edge_subgraph", TORCH_BOX(&kgrec::cpu::edge_subgraph));
}
