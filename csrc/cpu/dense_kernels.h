// Products of many rows with a small dense matrix. Included by kernels, inside their namespace.
//
// Widths of 32 to 256 are small for libraries of linear algebra, whose products copy their operands
// into an order of their own: here the small matrix alone is copied, once a thread, and whoever
// needs a product of a product goes on with a tile of rows that is still in the first cache.

namespace {

// Sums that stay in registers, so many rows of so many vectors, with room for what is multiplied.
constexpr int kDenseRows = 6;
constexpr int kDenseVectors = KGREC_VECTOR_BYTES == 64 ? 4 : 2;
template <class A>
constexpr int kDenseColumns = kDenseVectors * Simd<A>::W;  // a block

constexpr int64_t kDenseTile = 48;  // rows that the next product finds in the first cache

template <class A>
int64_t whole_blocks(int64_t columns) {
  return (columns + kDenseColumns<A> - 1) / kDenseColumns<A> * kDenseColumns<A>;
}

// A matrix [depth, columns] as products read it: one block of columns after another, zeros after
// the last column.
template <class A>
struct Packed {
  int64_t depth, columns;
  std::vector<A> data;

  // From a matrix, or with `transposed` from one of [columns, depth].
  Packed(const Matrix& from, int64_t depth, int64_t columns, bool transposed)
      : depth(depth), columns(whole_blocks<A>(columns)), data(this->columns * depth) {
    const A* x = static_cast<const A*>(from.data);
    for (int64_t j = 0; j < columns; ++j) {
      A* to = data.data() + j / kDenseColumns<A> * kDenseColumns<A> * depth + j % kDenseColumns<A>;
      for (int64_t k = 0; k < depth; ++k) {
        to[k * kDenseColumns<A>] = transposed ? x[j * from.stride + k] : x[k * from.stride + j];
      }
    }
  }
};

// sum[r] += left[offset[r]] times the vectors of a block of `right`, for `depth` steps of both.
template <class A>
KGREC_INLINE void add_products(
    int64_t depth, const A* left, int64_t left_step, const int64_t (&offset)[kDenseRows],
    const A* right, int64_t right_step, Vec<A> (&sum)[kDenseRows][kDenseVectors]) {
  for (int64_t k = 0; k < depth; ++k, left += left_step, right += right_step) {
    Vec<A> b[kDenseVectors];
#pragma GCC unroll 4
    for (int c = 0; c < kDenseVectors; ++c) {
      b[c] = load(right + c * Simd<A>::W);
    }
#pragma GCC unroll 6
    for (int r = 0; r < kDenseRows; ++r) {
      const Vec<A> a = splat(left[offset[r]]);
#pragma GCC unroll 4
      for (int c = 0; c < kDenseVectors; ++c) {
        sum[r][c] += a * b[c];
      }
    }
  }
}

// put(row, column, vector) for each vector of x [rows, depth] times a packed matrix. Columns go up
// to whole blocks.
template <class A, class F>
KGREC_INLINE void multiply_rows(
    const A* x, int64_t stride, int64_t rows, const Packed<A>& by, F&& put) {
  using V = Vec<A>;
  for (int64_t first = 0; first < rows; first += kDenseRows) {
    int64_t row[kDenseRows];
#pragma GCC unroll 6
    for (int r = 0; r < kDenseRows; ++r) {  // the last one again where there are fewer
      row[r] = std::min(first + r, rows - 1) * stride;
    }
    const A* block = by.data.data();
    for (int64_t column = 0; column < by.columns; column += kDenseColumns<A>) {
      V sum[kDenseRows][kDenseVectors] = {};
      add_products(by.depth, x, 1, row, block, kDenseColumns<A>, sum);
      block += by.depth * kDenseColumns<A>;
#pragma GCC unroll 6
      for (int r = 0; r < kDenseRows; ++r) {
        if (first + r < rows) {
#pragma GCC unroll 4
          for (int c = 0; c < kDenseVectors; ++c) {
            put(first + r, column + c * Simd<A>::W, sum[r][c]);
          }
        }
      }
    }
  }
}

// How many numbers of a vector at `column` belong to a matrix of so many columns, 0 for none.
template <class A>
KGREC_INLINE int lanes_at(int64_t column, int64_t columns) {
  return int(std::clamp<int64_t>(columns - column, 0, Simd<A>::W));
}

// sum [m, n] += left [rows, m] transposed, times right [rows, n], whose rows are readable, and
// zero, up to whole blocks. Its own sums are of these rows alone: long ones lose digits.
template <class A>
KGREC_INLINE void add_outer(
    const A* left, int64_t left_stride, int64_t m, const A* right, int64_t right_stride, int64_t n,
    int64_t rows, A* sum) {
  using V = Vec<A>;
  for (int64_t i = 0; i < m; i += kDenseRows) {
    int64_t column[kDenseRows];
#pragma GCC unroll 6
    for (int r = 0; r < kDenseRows; ++r) {
      column[r] = std::min(i + r, m - 1);
    }
    for (int64_t j = 0; j < n; j += kDenseColumns<A>) {
      V part[kDenseRows][kDenseVectors] = {};
      add_products(rows, left, left_stride, column, right + j, right_stride, part);
#pragma GCC unroll 6
      for (int r = 0; r < kDenseRows; ++r) {
        if (i + r < m) {
#pragma GCC unroll 4
          for (int c = 0; c < kDenseVectors; ++c) {
            const int64_t at = j + c * Simd<A>::W;
            if (const int lanes = lanes_at<A>(at, n)) {
              A* to = sum + (i + r) * n + at;
              store_n(to, load_n(to, lanes) + part[r][c], lanes);
            }
          }
        }
      }
    }
  }
}

// sum [n] += rows of x, readable and zero up to whole vectors.
template <class A>
KGREC_INLINE void sum_rows(const A* x, int64_t stride, int64_t n, int64_t rows, A* sum) {
  for_vectors<A>(n, [&](int64_t j, int lanes) {
    Vec<A> part{};
    for (int64_t row = 0; row < rows; ++row) {
      part += load(x + row * stride + j);
    }
    store_n(sum + j, load_n(sum + j, lanes) + part, lanes);
  });
}

// A tile of rows that may be read up to whole blocks: the rows themselves, or a copy.
template <class A>
struct PaddedRows {
  int64_t width, padded;
  std::vector<A> memory;  // zeros, and rows in the first columns
  const A* data = nullptr;
  int64_t stride = 0;

  explicit PaddedRows(int64_t width) : width(width), padded(whole_blocks<A>(width)) {
    if (padded != width) {
      memory.resize(kDenseTile * padded);
    }
  }
  void read(const A* x, int64_t x_stride, int64_t rows) {
    data = x;
    stride = x_stride;
    if (padded != width) {
      for (int64_t row = 0; row < rows; ++row) {
        std::memcpy(memory.data() + row * padded, x + row * x_stride, width * sizeof(A));
      }
      data = memory.data();
      stride = padded;
    }
  }
};

}  // namespace
