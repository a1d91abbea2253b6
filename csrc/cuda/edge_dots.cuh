// An inner product for each edge of a share. The group takes the edges one after the other; each
// lane looks up one of them and is left with its product.
#pragma once

#include "cuda/shares.cuh"

namespace kgrec::cuda {

// A lane's part of it.
template <class T, class C, class A>
KGREC_DEVICE A dot(const C& columns, const LaneValues<C, A>& left, const T* right) {
  A products = 0;
#pragma unroll
  for (int v = 0; v < C::kVectors; ++v) {
    A values[C::kSize];
    columns.read(right, v, values);
#pragma unroll
    for (int i = 0; i < C::kSize; ++i) {
      products += left[v][i] * values[i];
    }
  }
  return products;
}

// f(e, kept, product) by one lane for each edge of the share: the product, 0 where the edge is
// masked, of its row in `col_side` and a key. make_key(columns, relation, values) makes that out of
// the share's row in `row_side`, anew only where the relation changes, which never does without
// `rel`.
template <class T, class C, class MakeKey, class F>
KGREC_DEVICE void for_edge_dots(
    const OrderView& order, const int32_t* rel, const Share& share, const Matrix& row_side,
    const Matrix& col_side, int64_t width, MakeKey&& make_key, F&& f) {
  using A = acc_t<T>;
  if (share.begin == share.end) {
    return;
  }
  const T* row = matrix_row<T>(row_side, share.row);
  const C columns(share.lane, 0, width);
  const LaneValues<C, A> values = lane_values<T>(columns, row);
  LaneValues<C, A> key = values;
  int32_t rel_of_key = -1;
  for (int64_t first = share.begin; first < share.end; first += C::kLanes) {
    const int64_t e = first + share.lane;
    const bool there = e < share.end;
    const bool kept = there && (order.mask == nullptr || load(order.mask + e) != 0);
    const int32_t my_idx = kept ? load(order.idx + e) : -1;
    const int32_t my_rel = kept && rel != nullptr ? load(rel + e) : 0;
    const int64_t left = share.end - first;
    const int edges = left < C::kLanes ? static_cast<int>(left) : C::kLanes;
    A result = 0;
    for (int j = 0; j < edges; ++j) {
      const int32_t idx = __shfl_sync(share.mask, my_idx, j, C::kLanes);
      if (idx < 0) {
        continue;
      }
      const int32_t edge_rel = rel != nullptr ? __shfl_sync(share.mask, my_rel, j, C::kLanes) : 0;
      if (edge_rel != rel_of_key) {
        rel_of_key = edge_rel;
        key = make_key(columns, edge_rel, values);
      }
      const T* right = matrix_row<T>(col_side, idx);
      A products = dot(columns, key, right);
      for (int64_t slice = C::next_slice(0); slice < width; slice = C::next_slice(slice)) {
        const C others(share.lane, slice, width);
        products += dot(others, make_key(others, edge_rel, lane_values<T>(others, row)), right);
      }
      products = group_sum(products, C::kLanes, share.mask);
      result = j == share.lane ? products : result;
    }
    if (there) {
      f(e, kept, result);
    }
  }
}

}  // namespace kgrec::cuda
