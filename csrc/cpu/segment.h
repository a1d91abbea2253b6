// Reductions, spreading and softmax over sorted segments of rows.
#pragma once

#include "common/types.h"

namespace kgrec::cpu {

// A stretch of one long segment, whose partial sum goes to a place of its own.
struct SegmentChunk {
  int64_t segment, begin, end;
};

struct SegmentParams {
  DType dtype = DType::f32;
  int64_t num_segments = 0;
  int64_t width = 0;  // elements of a row
  bool mean = false;
  const int64_t* ptr = nullptr;  // [num_segments + 1]
  const void* src = nullptr;     // [E, width]; spreading: [num_segments, width]
  const void* grad = nullptr;    // [E, width], gradient of a softmax
  void* out = nullptr;           // [num_segments, width] or [E, width]
  // Segments of more than kLongSegment rows are cut, so that threads can share them.
  const SegmentChunk* chunks = nullptr;
  int64_t num_chunks = 0;
  void* partial = nullptr;  // [num_chunks, width] accumulate type
};

constexpr double kSoftmaxEps = 1e-16;  // added to every sum of exponentials, as PyG does

// Depends on nothing but the length of a segment: sums do not depend on the threads.
constexpr int64_t kLongSegment = 4096;

}  // namespace kgrec::cpu
