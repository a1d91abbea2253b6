// Reconstruction of edges: a group of lanes for each slot, and a block for the gradient of each
// relation, whose groups look for its slots among all.
#pragma once

#include "cuda/loss_sums.cuh"
#include "cuda/shares.cuh"

namespace kgrec::cuda {

KGREC_DEVICE int64_t id_at(const RelationIds& ids, int64_t slot) {
  return ids.wide ? load(static_cast<const int64_t*>(ids.data) + slot)
                  : int64_t{load(static_cast<const int32_t*>(ids.data) + slot)};
}

// The row of the relation of a slot; one that is there, and `inside` false, for an id out of range.
template <class T, class P>
KGREC_DEVICE const T* relation_row(const P& p, int64_t slot, bool& inside) {
  const int64_t id = id_at(p.ids, slot);
  inside = id >= 0 && id < p.num_relations;
  return inside ? matrix_row<T>(p.relation, id) : matrix_row<T>(p.head, slot);
}

// -- Forward ---------------------------------------------------------------------------------

template <class T, class S>
KGREC_DEVICE void add_slot(
    const ReconstructionLossParams& p, int64_t slot, GroupLanes lanes, LossSums& sums) {
  using A = acc_t<T>;
  using C = LaneColumns<T, S>;
  bool inside;
  const T* relation = relation_row<T>(p, slot, inside);
  A score = 0;
  int64_t slice = 0;
  do {
    const C columns(lanes.lane, slice, p.width);
#pragma unroll
    for (int v = 0; v < C::kVectors; ++v) {
      A h[C::kSize], t[C::kSize], r[C::kSize];
      columns.read(matrix_row<T>(p.head, slot), v, h);
      columns.read(matrix_row<T>(p.tail, slot), v, t);
      columns.read(relation, v, r);
#pragma unroll
      for (int e = 0; e < C::kSize; ++e) {
        score += h[e] * (t[e] * r[e]);
      }
    }
    slice = C::next_slice(slice);
  } while (slice < p.width);
  score = group_sum(score, S::kLanes, lanes.mask);
  if (lanes.lane == 0) {
    score = inside ? score : A(NAN);
    store(static_cast<A*>(p.score) + slot, score);
    const double weight = double(weight_at<A>(p.weight, slot));
    if (weight != 0) {
      sums.loss += weight * double(softplus(-score, exp(-fabs(score))));
      sums.total += weight;
    }
  }
}

template <class T, class S>
__global__ void __launch_bounds__(kBlockThreads, kBlocksAtOnce)
    reconstruction_loss_kernel(const ReconstructionLossParams p) {
  sum_chunks<S>(p.rows, p.mean.sums, [&](int64_t slot, GroupLanes lanes, LossSums& sums) {
    add_slot<T, S>(p, slot, lanes, sums);
  });
}

template <class P>
bool edges_are_aligned(const P& p) {
  return is_aligned(p.head, p.dtype) && is_aligned(p.tail, p.dtype) &&
         is_aligned(p.relation, p.dtype);
}

template <class Run>
void launches_reconstruction_loss(const ReconstructionLossParams& p, Run&& run) {
  with_row_shape(p.dtype, p.width, edges_are_aligned(p), [&](auto element, auto shape) {
    using S = decltype(shape);
    run(reconstruction_loss_kernel<decltype(element), S>, grid_for(loss_chunks(p.rows), 1), p);
  });
  launches_loss_mean(p.rows, p.dtype, p.mean, run);
}

// -- Backward --------------------------------------------------------------------------------

// The derivative of the loss by the score of a slot.
template <class A>
KGREC_DEVICE A slope_of(const ReconstructionLossBackwardParams& p, int64_t slot) {
  const A share = grad_share<A>(p, slot);
  const A score = load(static_cast<const A*>(p.score) + slot);
  return share == 0 ? A(0) : -share * Sigmoid<A>(score, exp(-fabs(score))).of_minus;
}

template <class T, class S>
KGREC_DEVICE void reconstruction_backward_row(
    const ReconstructionLossBackwardParams& p, int64_t slot, GroupLanes lanes) {
  using A = acc_t<T>;
  using C = LaneColumns<T, S>;
  const A slope = slope_of<A>(p, slot);
  bool inside;
  const T* relation = relation_row<T>(p, slot, inside);
  T* grad_head = static_cast<T*>(p.grad_head) + slot * p.width;
  T* grad_tail = static_cast<T*>(p.grad_tail) + slot * p.width;
  int64_t slice = 0;
  do {
    const C columns(lanes.lane, slice, p.width);
#pragma unroll
    for (int v = 0; v < C::kVectors; ++v) {
      A h[C::kSize], t[C::kSize], r[C::kSize];
      columns.read(matrix_row<T>(p.head, slot), v, h);
      columns.read(matrix_row<T>(p.tail, slot), v, t);
      columns.read(relation, v, r);
#pragma unroll
      for (int e = 0; e < C::kSize; ++e) {
        const A factor = r[e] * slope;
        r[e] = t[e] * factor;
        t[e] = h[e] * factor;
      }
      columns.write(grad_head, v, r);
      columns.write(grad_tail, v, t);
    }
    slice = C::next_slice(slice);
  } while (slice < p.width);
}

template <class T, class S>
__global__ void __launch_bounds__(kBlockThreads, kBlocksAtOnce)
    reconstruction_loss_backward_kernel(const ReconstructionLossBackwardParams p) {
  for_rows<S>(p.rows, [&](int64_t slot, GroupLanes lanes) {
    reconstruction_backward_row<T, S>(p, slot, lanes);
  });
}

// Adds head * tail * slope of those slots in [begin, end) that have this relation, in order.
template <class T, class C>
KGREC_DEVICE void add_slots(
    const ReconstructionLossBackwardParams& p, const C& columns, int64_t relation, int64_t begin,
    int64_t end, GroupLanes lanes, LaneValues<C, acc_t<T>>& sum) {
  using A = acc_t<T>;
  const int first_lane = lane_of_warp() - lanes.lane;
  for (int64_t base = begin; base < end; base += C::kLanes) {
    const int64_t mine = base + lanes.lane;
    const bool found = mine < end && id_at(p.ids, mine) == relation;
    unsigned votes = (__ballot_sync(lanes.mask, found) & lanes.mask) >> first_lane;
    while (votes != 0) {
      const int64_t slot = base + __ffs(static_cast<int>(votes)) - 1;
      votes &= votes - 1;
      const A slope = slope_of<A>(p, slot);
#pragma unroll
      for (int v = 0; v < C::kVectors; ++v) {
        A h[C::kSize], t[C::kSize];
        columns.read(matrix_row<T>(p.head, slot), v, h);
        columns.read(matrix_row<T>(p.tail, slot), v, t);
#pragma unroll
        for (int e = 0; e < C::kSize; ++e) {
          sum[v][e] += h[e] * t[e] * slope;
        }
      }
    }
  }
}

// Groups take neighbouring slots, and what they have found is added up in order.
template <class T, class S>
__global__ void __launch_bounds__(kBlockThreads, kBlocksAtOnce)
    reconstruction_loss_relations_kernel(const ReconstructionLossBackwardParams p) {
  using A = acc_t<T>;
  using C = LaneColumns<T, S>;
  constexpr int kGroups = kBlockThreads / C::kLanes;
  constexpr int kColumns = C::kLanes * C::kVectors * C::kSize;
  KGREC_SHARED(A, parts, kGroups * kColumns);
  const GroupLanes lanes = group_lanes<S>();
  const int group = static_cast<int>(threadIdx.x) / C::kLanes;
  const int64_t begin = p.rows * group / kGroups, end = p.rows * (group + 1) / kGroups;
  for (int64_t relation = blockIdx.x; relation < p.num_relations; relation += gridDim.x) {
    T* grad = static_cast<T*>(p.grad_relation) + relation * p.width;
    int64_t slice = 0;
    do {
      const C columns(lanes.lane, slice, p.width);
      LaneValues<C, A> sum{};
      add_slots<T>(p, columns, relation, begin, end, lanes, sum);
#pragma unroll
      for (int v = 0; v < C::kVectors; ++v) {
#pragma unroll
        for (int e = 0; e < C::kSize; ++e) {
          parts[group * kColumns + (v * C::kLanes + lanes.lane) * C::kSize + e] = sum[v][e];
        }
      }
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < kColumns; i += kBlockThreads) {
        if (slice + i < p.width) {
          A total = 0;
          for (int g = 0; g < kGroups; ++g) {
            total += parts[g * kColumns + i];
          }
          store(grad + slice + i, narrow<T>(total));
        }
      }
      __syncthreads();
      slice = C::next_slice(slice);
    } while (slice < p.width);
  }
}

template <class Run>
void launches_reconstruction_loss_backward(const ReconstructionLossBackwardParams& p, Run&& run) {
  with_row_shape(p.dtype, p.width, edges_are_aligned(p), [&](auto element, auto shape) {
    using T = decltype(element);
    using S = decltype(shape);
    run(reconstruction_loss_backward_kernel<T, S>, grid_for_rows<S>(p.rows), p);
    run(reconstruction_loss_relations_kernel<T, S>, grid_for(p.num_relations, 1), p);
  });
}

}  // namespace kgrec::cuda
