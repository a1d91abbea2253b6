// Means of edge scores by column, compiled once for every instruction set.

namespace {

struct ScoreSum {
  double total = 0;
  int64_t count = 0;
};

// x or, where it is not kept, 0: without a branch, which random masks would mislead, and whatever
// x.
KGREC_INLINE double if_kept(float x, bool kept) {
  return bit_cast<float>(bit_cast<uint32_t>(x) & (kept ? ~uint32_t{0} : 0));
}
KGREC_INLINE double if_kept(double x, bool kept) {
  return bit_cast<double>(bit_cast<uint64_t>(x) & (kept ? ~uint64_t{0} : 0));
}

template <class T, bool kMasked>
KGREC_INLINE ScoreSum sum_scores(const EdgeScoreMeansParams& p, int64_t begin, int64_t end) {
  const T* score = static_cast<const T*>(p.score);
  const int32_t* pos = p.order.pos;
  ScoreSum sum;
  for (int64_t e = begin; e < end; ++e) {
    const int32_t place = pos[e];
    if constexpr (kMasked) {
      const bool kept = p.row_mask[place] != 0;
      sum.total += if_kept(score[place], kept);
      sum.count += kept;
    } else {
      sum.total += score[place];
    }
  }
  if constexpr (!kMasked) {
    sum.count = end - begin;
  }
  return sum;
}

template <class T>
KGREC_INLINE T mean_of(const ScoreSum& sum) {
  return sum.count == 0 ? T(0) : T(sum.total / double(sum.count));
}

template <class T, bool kMasked>
void mean_parts(const EdgeScoreMeansParams& p, int64_t first, int64_t last) {
  for (int64_t part = first; part < last; ++part) {
    for_stretches(p.order, part, [&](int64_t row, int64_t begin, int64_t end, int64_t piece) {
      if (row >= p.num_items) {
        return;
      }
      const ScoreSum sum = sum_scores<T, kMasked>(p, begin, end);
      if (piece < 0) {
        static_cast<T*>(p.out)[row] = mean_of<T>(sum);
      } else {
        p.partial[piece] = sum.total;
        p.partial_count[piece] = sum.count;
        p.partial_row[piece] = row;
      }
    });
  }
}

}  // namespace

void edge_score_means_parts(const EdgeScoreMeansParams& p, int64_t begin, int64_t end) {
  if (p.is_double) {
    p.row_mask != nullptr ? mean_parts<double, true>(p, begin, end)
                          : mean_parts<double, false>(p, begin, end);
  } else {
    p.row_mask != nullptr ? mean_parts<float, true>(p, begin, end)
                          : mean_parts<float, false>(p, begin, end);
  }
}

// Columns that parts share, from their shares in order of the parts.
void edge_score_means_merge(const EdgeScoreMeansParams& p, int64_t pieces) {
  for (int64_t piece = 0; piece < pieces;) {
    const int64_t row = p.partial_row[piece];
    ScoreSum sum;
    for (; piece < pieces && (p.partial_row[piece] == row || p.partial_row[piece] < 0); ++piece) {
      if (p.partial_row[piece] == row) {
        sum.total += p.partial[piece];
        sum.count += p.partial_count[piece];
      }
    }
    if (row >= 0) {
      p.is_double ? void(static_cast<double*>(p.out)[row] = mean_of<double>(sum))
                  : void(static_cast<float*>(p.out)[row] = mean_of<float>(sum));
    }
  }
}
