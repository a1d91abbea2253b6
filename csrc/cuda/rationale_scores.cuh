// Rationale scores: a pass over the edges writes their logits, then sweeps over these make the
// softmax of each row. The mean over heads of the sums of each is one sum over the whole row, so
// that the number of heads is in the scale alone.
#pragma once

#include <cmath>

#include "cuda/edge_dots.cuh"
#include "cuda/rationale_scores.h"
#include "cuda/softmax.cuh"

namespace kgrec::cuda {

template <class A>
struct RowSoftmax {
  A top = A(-INFINITY);  // of the logits of unmasked edges
  A total = 0;           // of exp(logit - top) over these
  int32_t count = 0;     // of these
};

// Of edges begin + lane, begin + lane + lanes ...: those whose logits this lane has written itself,
// so that no lane waits for another. A masked one, -inf, adds nothing.
template <class A>
KGREC_DEVICE A
sum_of_exponentials(const A* logits, int64_t begin, int64_t end, int lane, int lanes, A top) {
  A total = 0;
  for (int64_t e = begin + lane; e < end; e += lanes) {
    total += exp(load(logits + e) - base_of(top));
  }
  return total;
}

// Of edges begin + lane, begin + lane + lanes ..., too.
template <class A>
KGREC_DEVICE void write_scores(
    const RationaleParams& p, int64_t begin, int64_t end, int lane, int lanes,
    const RowSoftmax<A>& softmax) {
  const A* logits = static_cast<const A*>(p.logits);
  const A factor = A(softmax.count) / softmax.total;
  for (int64_t e = begin + lane; e < end; e += lanes) {
    const bool kept = p.order.mask == nullptr || load(p.order.mask + e) != 0;
    const A score = kept ? exp(load(logits + e) - softmax.top) * factor : A(0);
    store(static_cast<A*>(p.scores) + e, score);
  }
}

template <class T, class S>
__global__ void __launch_bounds__(kBlockThreads, (kFewColumns<T, S> ? 4 : kBlocksAtOnce))
    rationale_scores_kernel(const RationaleParams p) {
  using A = acc_t<T>;
  using C = LaneColumns<T, S>;
  using Values = LaneValues<C, A>;
  const int32_t* rel = p.relation.data != nullptr ? p.order.rel : nullptr;
  A* logits = static_cast<A*>(p.logits);
  for_shares<C::kLanes>(p.order, p.plan, [&](const Share& share) {
    const auto make_key = [&](const C& columns, int32_t relation, Values key) {
#pragma unroll
      for (int v = 0; v < C::kVectors; ++v) {
        if (rel != nullptr) {
          A r[C::kSize];
          columns.read(matrix_row<T>(p.relation, relation), v, r);
#pragma unroll
          for (int i = 0; i < C::kSize; ++i) {
            key[v][i] *= r[i];
          }
        }
#pragma unroll
        for (int i = 0; i < C::kSize; ++i) {
          key[v][i] *= A(p.scale);
        }
      }
      return key;
    };
    RowSoftmax<A> softmax;
    for_edge_dots<T, C>(
        p.order, rel, share, p.query, p.query, p.width, make_key,
        [&](int64_t e, bool kept, A product) {
          const A logit = kept ? product : A(-INFINITY);
          store(logits + e, logit);
          softmax.top = logit > softmax.top ? logit : softmax.top;
          softmax.count += kept;
        });
    const int lanes = share.together ? kWarp : C::kLanes;
    const unsigned mask = share.together ? kFullMask : share.mask;
    softmax.top = group_max(softmax.top, lanes, mask);
    softmax.count = group_sum(softmax.count, lanes, mask);
    softmax.total =
        sum_of_exponentials(logits, share.begin, share.end, share.lane, C::kLanes, softmax.top);
    softmax.total = group_sum(softmax.total, lanes, mask);
    if (share.chunk < 0) {
      write_scores(p, share.begin, share.end, share.lane, C::kLanes, softmax);
    } else if (lane_of_warp() == 0) {
      A* partial = static_cast<A*>(p.partial) + 2 * share.chunk;
      store(partial, softmax.top);
      store(partial + 1, softmax.total);
      store(p.partial_count + share.chunk, softmax.count);
    }
  });
}

// The softmax of a whole hub, from its chunks: the same bits in every warp that asks for it.
template <class A>
KGREC_DEVICE RowSoftmax<A> softmax_of_chunks(const RationaleParams& p, int64_t begin, int64_t end) {
  const A* partial = static_cast<const A*>(p.partial);
  RowSoftmax<A> softmax;
  for (int64_t chunk = begin + lane_of_warp(); chunk < end; chunk += kWarp) {
    const A top = load(partial + 2 * chunk);
    softmax.top = top > softmax.top ? top : softmax.top;
    softmax.count += load(p.partial_count + chunk);
  }
  softmax.top = group_max(softmax.top, kWarp, kFullMask);
  softmax.count = group_sum(softmax.count, kWarp, kFullMask);
  for (int64_t chunk = begin + lane_of_warp(); chunk < end; chunk += kWarp) {
    softmax.total += rebase(load(partial + 2 * chunk + 1), load(partial + 2 * chunk), softmax.top);
  }
  softmax.total = group_sum(softmax.total, kWarp, kFullMask);
  return softmax;
}

// The hub that a chunk is of: the last one that begins there or before.
KGREC_DEVICE int64_t hub_of_chunk(const RowPlan& plan, int64_t chunk) {
  int64_t hub = 0, end = plan.num_hubs;
  while (end - hub > 1) {
    const int64_t middle = (hub + end) / 2;
    if (load(plan.hub + 3 * middle + 1) <= chunk) {
      hub = middle;
    } else {
      end = middle;
    }
  }
  return hub;
}

// The scores of hubs: a warp a chunk.
template <class A>
__global__ void __launch_bounds__(kBlockThreads, kBlocksAtOnce)
    rationale_scores_hub_kernel(const RationaleParams p) {
  for (int64_t chunk = warp_of_grid(); chunk < p.plan.num_chunks; chunk += warps_in_grid()) {
    const int32_t* hub = p.plan.hub + 3 * hub_of_chunk(p.plan, chunk);
    const RowSoftmax<A> softmax = softmax_of_chunks<A>(p, load(hub + 1), load(hub + 2));
    const int32_t* edges = p.plan.chunk + 3 * chunk + 1;
    write_scores(p, load(edges), load(edges + 1), lane_of_warp(), kWarp, softmax);
  }
}

template <class Run>
void launches_rationale_scores(RationaleParams p, Run&& run) {
  p.scale = 1 / (p.num_heads * std::sqrt(double(p.width / p.num_heads)));
  const bool aligned = is_aligned(p.query, p.dtype) && is_aligned(p.relation, p.dtype);
  with_row_shape(p.dtype, p.width, aligned, [&](auto element, auto shape) {
    using T = decltype(element);
    using S = decltype(shape);
    run(rationale_scores_kernel<T, S>, grid_for_shares<S>(p.plan), p);
    run(rationale_scores_hub_kernel<acc_t<T>>, grid_for(p.plan.num_chunks, kBlockThreads / kWarp),
        p);
  });
}

}  // namespace kgrec::cuda
