// What the launches of every op share: how large a grid is, and which template instance serves a
// width. Free of torch and of CUDA's headers, for the emulator of tests/cuda launches the same.
//
// Each X.cuh ends with launches_x(params, run), which calls run(kernel, geometry, params) for every
// kernel of the op in order: X.cu with an OnStream, the emulator with its own Launcher.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/graph_view.h"
#include "common/types.h"

typedef struct CUstream_st* cudaStream_t;  // as CUDA's headers do

namespace kgrec::cuda {

constexpr int kBlockThreads = 256;
// Kernels go through their work in strides of the grid, so any number of blocks will do.
constexpr int64_t kMaxBlocks = 1 << 20;

struct Geometry {
  unsigned blocks = 0;  // 0: nothing to do, and nothing is launched
  unsigned threads = kBlockThreads;
  unsigned shared_bytes = 0;  // besides what the kernel declares
};

// Enough blocks for `items`, of which each takes `per_block` at a time.
inline Geometry grid_for(int64_t items, int64_t per_block) {
  Geometry geometry;
  geometry.blocks =
      static_cast<unsigned>(std::min((items + per_block - 1) / per_block, kMaxBlocks));
  return geometry;
}

// A row of kWidth elements in vectors of 16 bytes, or of kBytes: kLanes lanes side by side with
// kVectors each, the vectors of a lane kLanes apart, so that a load of the group is consecutive.
template <class T, int kWidth_, int kBytes = 16>
struct RowShape {
  static constexpr int kWidth = kWidth_;
  static constexpr int kSize = kBytes / sizeof(T);
  static constexpr int kLanes = std::min(32, kWidth / kSize);
  static constexpr int kVectors = kWidth / kSize / kLanes;
  static_assert(kLanes * kVectors * kSize == kWidth, "whole vectors");
};

// Any other width, element by element: a warp a row.
struct AnyShape {
  static constexpr int kLanes = 32;
};

// Blocks for a kernel that gives a group of lanes to each row.
template <class Shape>
Geometry grid_for_rows(int64_t rows) {
  return grid_for(rows, kBlockThreads / Shape::kLanes);
}

// Calls f(shape) with a RowShape where there is one for the width and rows can be loaded as
// vectors, else with an AnyShape.
template <class T, class F>
void with_width(int64_t width, bool aligned, F&& f) {
  switch (aligned ? width : 0) {
    case 32:
      return f(RowShape<T, 32>{});
    case 64:
      return f(RowShape<T, 64>{});
    case 128:
      return f(RowShape<T, 128>{});
    case 256:
      return f(RowShape<T, 256>{});
    default:
      return f(AnyShape{});
  }
}

// f(element, shape) for any element type.
template <class F>
void with_row_shape(DType dtype, int64_t width, bool aligned, F&& f) {
  const auto typed = [&](auto element) {
    with_width<decltype(element)>(width, aligned, [&](auto shape) { f(element, shape); });
  };
  switch (dtype) {
    case DType::f32:
      return typed(float{});
    case DType::f64:
      return typed(double{});
    case DType::bf16:
      return typed(BFloat16{});
    case DType::f16:
      return typed(Half{});
  }
}

// Whether every row of the matrix begins at a multiple of 16 bytes. One that is not there does.
inline bool is_aligned(const Matrix& x, DType dtype) {
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride * element_bytes(dtype) % 16 == 0;
}

}  // namespace kgrec::cuda
