// Attention heads in a row that a group of lanes shares: equal slices of its columns. Groups are in
// step here: all lanes of the warp meet at each edge.
#pragma once

#include "cuda/shares.cuh"

namespace kgrec::cuda {

// The columns that a pass over the edges of a share covers, and the sums over whole heads that it
// needs for them. A head is some neighbouring lanes of a vector, or several whole vectors.
template <class T, class S>
struct HeadColumns;

// All columns and all heads in one pass.
template <class T, int kWidth, int kBytes>
struct HeadColumns<T, RowShape<T, kWidth, kBytes>> : LaneColumns<T, RowShape<T, kWidth, kBytes>> {
  using C = LaneColumns<T, RowShape<T, kWidth, kBytes>>;
  static constexpr bool kWhole = true;
  static constexpr int kStates = C::kVectors;  // a lane has columns of so many heads at most

  int head_width, lanes, vectors;

  KGREC_DEVICE HeadColumns(int lane_of_group, int64_t num_heads) : C(lane_of_group, 0, kWidth) {
    head_width = kWidth / static_cast<int>(num_heads);
    lanes = head_width / C::kSize < C::kLanes ? head_width / C::kSize : C::kLanes;
    vectors = head_width / (lanes * C::kSize);
  }

  static KGREC_DEVICE int state(int v) { return v; }
  KGREC_DEVICE int head(int v) const { return static_cast<int>(this->column(v)) / head_width; }
  // One lane a head writes what belongs to the head.
  KGREC_DEVICE bool leads(int v) const { return this->column(v) % head_width == 0; }

  // The sum over each head of what its lanes have, the same bits in all of them.
  template <class A>
  KGREC_DEVICE void sum_heads(A (&x)[kStates]) const {
#pragma unroll
    for (int v = 0; v < kStates; ++v) {
#pragma unroll
      for (int offset = C::kLanes / 2; offset > 0; offset /= 2) {
        if (offset < lanes) {
          x[v] += __shfl_xor_sync(kFullMask, x[v], offset);
        }
      }
    }
#pragma unroll
    for (int apart = 1; apart < kStates; apart *= 2) {
      if (apart < vectors) {
#pragma unroll
        for (int v = 0; v < kStates; v += 2 * apart) {
#pragma unroll
          for (int i = 0; i < apart; ++i) {
            x[v + i] += x[v + apart + i];
            x[v + apart + i] = x[v + i];
          }
        }
      }
    }
  }

  // The value of head `k`, for all lanes to see.
  template <class A>
  KGREC_DEVICE A of_head(const A (&x)[kStates], int k) const {
    const int column = k * head_width;
    const int lane = column / C::kSize % C::kLanes;
    A value = 0;
#pragma unroll
    for (int v = 0; v < kStates; ++v) {
      const A other = __shfl_sync(kFullMask, x[v], lane, C::kLanes);
      value = column / (C::kLanes * C::kSize) == v ? other : value;
    }
    return value;
  }
};

// Some columns of one head; the warp is one group. A wide head takes several passes, each of which
// forms the sums over all of the head anew.
template <class T>
struct HeadColumns<T, AnyShape> : LaneColumns<T, AnyShape> {
  using C = LaneColumns<T, AnyShape>;
  static constexpr bool kWhole = false;
  static constexpr int kStates = 1;
  static constexpr int kAtOnce = C::kLanes * C::kVectors;

  int64_t head_begin, head_end;
  int head_number;

  KGREC_DEVICE HeadColumns(int lane_of_group, int64_t head_width, int64_t k, int64_t slice)
      : C(lane_of_group, k * head_width + slice * kAtOnce, (k + 1) * head_width),
        head_begin(k * head_width),
        head_end((k + 1) * head_width),
        head_number(static_cast<int>(k)) {}

  static KGREC_DEVICE int state(int) { return 0; }
  KGREC_DEVICE int head(int) const { return head_number; }
  KGREC_DEVICE bool leads(int) const { return this->first == head_begin && this->lane == 0; }

  template <class A>
  KGREC_DEVICE void sum_heads(A (&x)[kStates]) const {
    x[0] = group_sum(x[0], kWarp, kFullMask);
  }

  // f(column) for the columns of the head that this lane has.
  template <class F>
  KGREC_DEVICE void for_head(F&& f) const {
    for (int64_t column = head_begin + this->lane; column < head_end; column += kWarp) {
      f(column);
    }
  }
};

// Wide rows of double need the registers of a whole multiprocessor.
template <class T, class S>
constexpr int kAttentionBlocks =
    sizeof(LaneValues<HeadColumns<T, S>, acc_t<T>>) > 32 ? 1 : kBlocksAtOnce;

// What scores are multiplied by: 1 / sqrt(d).
template <class A>
KGREC_DEVICE A score_scale(int64_t width, int64_t num_heads) {
  return A(1) / sqrt(A(width / num_heads));
}

// f(columns) for each pass that a row takes.
template <class T, class S, class F>
KGREC_DEVICE void for_passes(int lane_of_group, int64_t width, int64_t num_heads, F&& f) {
  if constexpr (HeadColumns<T, S>::kWhole) {
    f(HeadColumns<T, S>(lane_of_group, num_heads));
  } else {
    const int64_t head_width = width / num_heads;
    for (int64_t k = 0; k < num_heads; ++k) {
      for (int64_t slice = 0; slice * HeadColumns<T, S>::kAtOnce < head_width; ++slice) {
        f(HeadColumns<T, S>(lane_of_group, head_width, k, slice));
      }
    }
  }
}

// with_row_shape where a vector must not be of two heads, and a group has a lane for each head. Of
// a half type, eight heads of 32 columns take vectors of half the size.
template <class F>
void with_head_shape(DType dtype, int64_t width, int64_t num_heads, bool aligned, F&& f) {
  if (aligned && width == 32 && num_heads == 8) {
    if (dtype == DType::bf16) {
      return f(BFloat16{}, RowShape<BFloat16, 32, 8>{});
    }
    if (dtype == DType::f16) {
      return f(Half{}, RowShape<Half, 32, 8>{});
    }
  }
  const int64_t vector = kVectorBytes / element_bytes(dtype);
  const bool whole = width / num_heads % vector == 0 && num_heads <= kWarp;
  with_row_shape(dtype, width, aligned && whole, f);
}

}  // namespace kgrec::cuda
