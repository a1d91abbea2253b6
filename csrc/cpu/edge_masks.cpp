// Masks of the edges of a graph, by its rows.

#include "cpu/binding.h"
#include "cpu/mask_bits.h"

namespace kgrec::cpu {
namespace {

// Pointers to the edges of rows, and to bits of each of these.
struct RowMasks {
  int64_t num_rows, num_edges;
  const int64_t* rowptr;
  const uint8_t* mask;   // [num_edges], or null for all edges
  const uint8_t* other;  // likewise
};

RowMasks row_masks(
    const Tensor& rowptr, int64_t num_edges, const std::optional<Tensor>& mask,
    const std::optional<Tensor>& other) {
  STD_TORCH_CHECK(rowptr.numel() >= 1, "rowptr is empty, expected [rows + 1]");
  RowMasks rows;
  rows.num_rows = rowptr.numel() - 1;
  rows.num_edges = num_edges;
  rows.rowptr = flat<int64_t>(rowptr, "rowptr", rowptr.numel());
  rows.mask = mask_of(mask, num_edges);
  rows.other = mask_of(other, num_edges);
  STD_TORCH_CHECK(
      rows.rowptr[0] == 0 && rows.rowptr[rows.num_rows] == num_edges &&
          std::is_sorted(rows.rowptr, rows.rowptr + rowptr.numel()),
      "rowptr is expected to rise from 0 to ", num_edges);
  return rows;
}

// f(row) for all rows, on torch's threads.
template <class F>
void for_rows(const RowMasks& p, const F& f) {
  const int64_t edges_a_row = p.num_edges / std::max<int64_t>(p.num_rows, 1);
  parallel_rows(p.num_rows, edges_a_row, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      f(row);
    }
  });
}

template <class T>
void write_counts(const RowMasks& p, T* out) {
  for_rows(p, [&](int64_t row) {
    out[row] = T(count_kept(p.mask, p.other, p.rowptr[row], p.rowptr[row + 1]));
  });
}

// How many edges of each row are in both masks: [rows], float64 if `wide`, else float32.
Tensor count_edges(
    const Tensor& rowptr, const Tensor& mask, const std::optional<Tensor>& other, bool wide) {
  const RowMasks rows = row_masks(rowptr, mask.numel(), mask, other);
  Tensor out = make(rowptr, {rows.num_rows}, wide ? ScalarType::Double : ScalarType::Float);
  if (wide) {
    write_counts(rows, out.mutable_data_ptr<double>());
  } else {
    write_counts(rows, out.mutable_data_ptr<float>());
  }
  return out;
}

// The edges in the mask whose row is one of `ids`, which may name rows beyond the last: bool [E].
Tensor edges_of_rows(
    const Tensor& rowptr, const Tensor& ids_any, const std::optional<Tensor>& mask,
    int64_t num_edges) {
  const RowMasks rows = row_masks(rowptr, num_edges, mask, std::nullopt);
  const Tensor ids = torch::stable::contiguous(ids_any);
  const int64_t* id = flat<int64_t>(ids, "ids", ids.numel());
  std::vector<uint8_t> wanted(size_t(rows.num_rows));
  for (int64_t i = 0; i < ids.numel(); ++i) {
    STD_TORCH_CHECK(id[i] >= 0, "ids[", i, "] is ", id[i], ", expected at least 0");
    if (id[i] < rows.num_rows) {
      wanted[size_t(id[i])] = 1;
    }
  }
  Tensor out = make(rowptr, {num_edges}, ScalarType::Bool);
  uint8_t* to = static_cast<uint8_t*>(out.mutable_data_ptr());
  for_rows(rows, [&](int64_t row) {
    const int64_t begin = rows.rowptr[row], size = rows.rowptr[row + 1] - begin;
    if (wanted[size_t(row)] && rows.mask != nullptr) {
      std::copy_n(rows.mask + begin, size, to + begin);
    } else {
      std::fill_n(to + begin, size, wanted[size_t(row)]);
    }
  });
  return out;
}

}  // namespace
}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CPU, m) {
  m.impl("count_edges", TORCH_BOX(&kgrec::cpu::count_edges));
  m.impl("edges_of_rows", TORCH_BOX(&kgrec::cpu::edges_of_rows));
}
