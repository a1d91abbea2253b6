// Sums, spreading and softmax over segments of rows, sorted or listed by a permutation.
#pragma once

#include <cstdint>

#include "common/types.h"
#include "cuda/launch.h"

namespace kgrec::cuda {

constexpr double kSoftmaxEps = 1e-16;  // added to every sum of exponentials, as PyG does

// A segment of more places is summed in the pieces that multiples of this number cut it into.
constexpr int64_t kChunkPlaces = 512;

// ptr and index live on the device and are not checked: places that they put outside of src are
// left out, and rows that belong to no segment become NaN.
struct SegmentParams {
  DType dtype = DType::f32;
  bool mean = false;
  int64_t batches = 1;  // of sums
  int64_t rows = 0;
  int64_t num_segments = 0;
  int64_t width = 0;
  const int64_t* ptr = nullptr;    // [num_segments + 1] places of each segment
  const int64_t* perm = nullptr;   // [rows] row at each place, null: the place itself
  const int64_t* index = nullptr;  // [rows] segment of each row, null: by ptr
  const void* src = nullptr;       // [batches, rows, width]; spreading: [num_segments, width]
  const void* grad = nullptr;      // [rows, width], gradient of a softmax, whose result is src
  void* out = nullptr;             // [batches, num_segments, width] or [rows, width]
  void* top = nullptr;             // [num_segments, width] accumulate type, of softmax
  void* total = nullptr;           // [num_segments, width] accumulate type, of softmax
  void* partial = nullptr;         // [batches, chunks, 2, width] accumulate type
  void* partial_top = nullptr;     // [chunks, 2, width] accumulate type, of softmax forward
  // Set by the launches: the number of chunks, lanes side by side in a row, and rows that a segment
  // takes at a time.
  int64_t chunks = 0;
  int col_lanes = 1;
  int row_lanes = 1;
};

// Chunks of places; none where no segment can be long.
inline int64_t chunks_of(int64_t rows) {
  return rows > kChunkPlaces ? (rows + kChunkPlaces - 1) / kChunkPlaces : 0;
}

void launch_segment_sum(const SegmentParams& params, cudaStream_t stream);
void launch_segment_spread(const SegmentParams& params, cudaStream_t stream);
void launch_segment_softmax(const SegmentParams& params, cudaStream_t stream);
void launch_segment_softmax_backward(const SegmentParams& params, cudaStream_t stream);

}  // namespace kgrec::cuda
