#include <algorithm>
#include <memory>
#include <tuple>
#include <vector>

#include "cpu/binding.h"

namespace kgrec::cpu {
namespace {

// The number of bits set. Every processor of the last fifteen years has an instruction for it, but
// the builtin calls a function where the oldest are served too.
inline int64_t count_bits(uint64_t bits) {
  bits -= bits >> 1 & 0x5555555555555555u;
  bits = (bits & 0x3333333333333333u) + (bits >> 2 & 0x3333333333333333u);
  return int64_t(((bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0fu) * 0x0101010101010101u >> 56);
}

// Which edges of an order are kept, a bit each, and how many there are before each word of 64.
class KeptBits {
 public:
  // is_kept(e) for every edge; what it reads must not change.
  template <class F>
  KeptBits(int64_t num_edges, const F& is_kept)
      : num_words_(num_edges / 64 + 1), word_(new uint64_t[num_words_]), before_(num_words_ + 1) {
    for_blocks([&](int64_t w) {
      const int64_t first = w * 64, count = std::min<int64_t>(64, num_edges - first);
      uint64_t bits = 0;
      for (int64_t i = 0; i < count; ++i) {  // without a branch on the mask, which is random
        bits |= uint64_t(is_kept(first + i)) << i;
      }
      word_[w] = bits;
    });
    for (int64_t w = 0; w < num_words_; ++w) {
      before_[w + 1] = before_[w] + int32_t(count_bits(word_[w]));
    }
  }

  int64_t size() const { return before_.back(); }
  bool operator[](int64_t e) const { return word_[uint64_t(e) / 64] >> (uint64_t(e) % 64) & 1; }
  // How many edges are kept before edge e, which may be one past the last.
  int64_t before(int64_t e) const {
    const uint64_t lower = (uint64_t(1) << (uint64_t(e) % 64)) - 1;
    return before_[uint64_t(e) / 64] + count_bits(word_[uint64_t(e) / 64] & lower);
  }
  // f(i, e) for each kept edge e, the i-th.
  template <class F>
  void each(const F& f) const {
    for_blocks([&](int64_t w) {
      int64_t i = before_[w];
      for (uint64_t bits = word_[w]; bits != 0; bits &= bits - 1) {
        f(i++, w * 64 + __builtin_ctzll(bits));
      }
    });
  }

 private:
  template <class F>
  void for_blocks(const F& f) const {
    constexpr int64_t kBlock = 256;
    parallel_parts((num_words_ + kBlock - 1) / kBlock, [&](int64_t begin, int64_t end) {
      for (int64_t w = begin * kBlock; w < std::min(end * kBlock, num_words_); ++w) {
        f(w);
      }
    });
  }

  int64_t num_words_;
  std::unique_ptr<uint64_t[]> word_;
  std::vector<int32_t> before_;
};

Tensor edges_of(const KeptBits& kept, const Tensor& like) {
  return make(like, {kept.size()}, ScalarType::Int);
}

// Boundaries between edges, rows of them, counted in kept ones.
Tensor counted(
    const int64_t* edge, std::vector<int64_t> shape, const Tensor& like, const KeptBits& kept) {
  Tensor out = make(like, shape, ScalarType::Long);
  int64_t* to = out.mutable_data_ptr<int64_t>();
  const int64_t size = out.numel();
  torch::stable::parallel_for(0, size, 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      to[i] = kept.before(edge[i]);
    }
  });
  return out;
}

// The parts of the graph, counted in kept edges: so the slot of a relation stays that of its part.
Tensor parts_of(const OrderView& order, const Tensor& like, const KeptBits& kept) {
  const int64_t size = order.num_parts + 1;
  Tensor part = counted(order.part_row, {2, size}, like, kept);
  std::copy_n(order.part_row, size, part.mutable_data_ptr<int64_t>());
  return part;
}

// Row order: rowptr, head, tail, relation, position in the graph, parts, slots. Column order, if it
// is there, else nothing: colptr, head, relation, position in the subgraph, parts.
std::tuple<
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
edge_subgraph(const Graph& graph, const Tensor& row_mask) {
  const OrderView rows = row_order(graph, row_mask);
  const Tensor& like = graph[kCol];
  const Tensor none = make(like, {0}, ScalarType::Int);
  const KeptBits kept(rows.num_edges, [&](int64_t e) { return rows.mask[e] != 0; });

  const int32_t* heads = flat<int32_t>(graph[kHead], "head", rows.num_edges);
  const int32_t* slots =
      graph[kSlot].numel() > 0 ? flat<int32_t>(graph[kSlot], "slot", rows.num_edges) : nullptr;
  Tensor head = edges_of(kept, like), tail = edges_of(kept, like), position = edges_of(kept, like);
  Tensor relation = rows.rel == nullptr ? none : edges_of(kept, like);
  Tensor slot = slots == nullptr ? none : edges_of(kept, like);
  int32_t* to_head = head.mutable_data_ptr<int32_t>();
  int32_t* to_tail = tail.mutable_data_ptr<int32_t>();
  int32_t* to_position = position.mutable_data_ptr<int32_t>();
  int32_t* to_relation = relation.mutable_data_ptr<int32_t>();
  int32_t* to_slot = slot.mutable_data_ptr<int32_t>();
  kept.each([&](int64_t i, int64_t e) {
    to_head[i] = heads[e];
    to_tail[i] = rows.idx[e];
    to_position[i] = int32_t(e);
    if (rows.rel != nullptr) {
      to_relation[i] = rows.rel[e];
    }
    if (slots != nullptr) {
      to_slot[i] = slots[e];
    }
  });
  const Tensor rowptr = counted(rows.ptr, {rows.num_rows + 1}, like, kept);
  const Tensor part = parts_of(rows, like, kept);
  if (!has_columns(graph)) {
    return {rowptr, head, tail, relation, position, part, slot, none, none, none, none, none};
  }

  const OrderView columns = column_order(graph, std::nullopt);
  const KeptBits kept_there(columns.num_edges, [&](int64_t e) { return kept[columns.pos[e]]; });
  Tensor col_row = edges_of(kept, like), col_pos = edges_of(kept, like);
  Tensor col_rel = columns.rel == nullptr ? none : edges_of(kept, like);
  int32_t* to_col_row = col_row.mutable_data_ptr<int32_t>();
  int32_t* to_col_pos = col_pos.mutable_data_ptr<int32_t>();
  int32_t* to_col_rel = col_rel.mutable_data_ptr<int32_t>();
  kept_there.each([&](int64_t i, int64_t e) {
    to_col_row[i] = columns.idx[e];
    to_col_pos[i] = int32_t(kept.before(columns.pos[e]));
    if (columns.rel != nullptr) {
      to_col_rel[i] = columns.rel[e];
    }
  });
  const Tensor colptr = counted(columns.ptr, {columns.num_rows + 1}, like, kept_there);
  const Tensor col_part = parts_of(columns, like, kept_there);
  return {rowptr, head,   tail,    relation, position, part,
          slot,   colptr, col_row, col_rel,  col_pos,  col_part};
}

}  // namespace
}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CPU, m) {
  m.impl("edge_subgraph", TORCH_BOX(&kgrec::cpu::edge_subgraph));
}
