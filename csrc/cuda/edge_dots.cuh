// An inner product for each edge of a share. The group takes the edges one after the other; each
// lane looks up one of them and is left with its product.
#pragma once

#include "cuda/shares.cuh"

namespace kgrec::cuda {

// A lane's part of it.
template <class C, class A>
KGREC_DEVICE A dot(const LaneValues<C, A>& left, const LaneValues<C, A>& right) {
  A products = 0;
#pragma unroll
  for (int v = 0; v < C::kVectors; ++v) {
#pragma unroll
    for (int i = 0; i < C::kSize; ++i) {
      products += left[v][i] * right[v][i];
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
  constexpr int kAtOnce = kEdgesAtOnce<C, A>;
  const T* row = matrix_row<T>(row_side, share.row);
  const C columns(share.lane, 0, width);
  const LaneValues<C, A> values = lane_values<T>(columns, row);
  LaneValues<C, A> key = values;
  int32_t rel_of_key = -1;
  for (int64_t first = share.begin; first < share.end; first += C::kLanes) {
    const int64_t e = first + share.lane;
    const bool there = e < share.end;
    const int32_t my_idx = there ? load(order.idx + e) : -1;
    const int32_t my_rel = there && rel != nullptr ? load(rel + e) : 0;
    const bool kept = there && (order.mask == nullptr || load(order.mask + e) != 0);
    unsigned left = kept_lanes<C::kLanes>(share.mask, kept);
    A result = 0;
    while (left != 0) {
      int lane[kAtOnce];
      int32_t idx[kAtOnce], edge_rel[kAtOnce];
      LaneValues<C, A> right[kAtOnce];
      A products[kAtOnce] = {};
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        lane[u] = take_lane(left);
        const int from = lane[u] < 0 ? 0 : lane[u];
        idx[u] = __shfl_sync(share.mask, my_idx, from, C::kLanes);
        edge_rel[u] = rel != nullptr ? __shfl_sync(share.mask, my_rel, from, C::kLanes) : 0;
        if (lane[u] >= 0) {
          right[u] = lane_values<T>(columns, matrix_row<T>(col_side, idx[u]));
        }
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        if (lane[u] < 0) {
          continue;
        }
        if (edge_rel[u] != rel_of_key) {
          rel_of_key = edge_rel[u];
          key = make_key(columns, edge_rel[u], values);
        }
        products[u] = dot(key, right[u]);
        for (int64_t slice = C::next_slice(0); slice < width; slice = C::next_slice(slice)) {
          const C others(share.lane, slice, width);
          products[u] +=
              dot(make_key(others, edge_rel[u], lane_values<T>(others, row)),
                  lane_values<T>(others, matrix_row<T>(col_side, idx[u])));
        }
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        products[u] = group_sum(products[u], C::kLanes, share.mask);
        result = lane[u] == share.lane ? products[u] : result;
      }
    }
    if (there) {
      f(e, kept, result);
    }
  }
}

}  // namespace kgrec::cuda
