// Dense products around the graph layers, compiled once for every instruction set.

#include "cpu/block_kernels.h"
#include "cpu/dense_kernels.h"
#include "cpu/matrix_rows.h"

namespace {

// f(value of the type) for the types that these kernels take.
template <class F>
KGREC_INLINE void for_whole_dtype(DType dtype, F&& f) {
  dtype == DType::f64 ? f(double{}) : f(float{});
}

// The rows of a part: f(first row, number of rows) for each tile of them.
template <class F>
KGREC_INLINE void for_tiles(int64_t begin, int64_t end, F&& f) {
  for (int64_t first = begin; first < end; first += kDenseTile) {
    f(first, std::min(kDenseTile, end - first));
  }
}

// The result of a product into rows of their exact width.
template <class A>
KGREC_INLINE auto store_to(A* out, int64_t width) {
  return [=](int64_t row, int64_t column, Vec<A> v) {
    if (const int lanes = lanes_at<A>(column, width)) {
      store_n(out + row * width + column, v, lanes);
    }
  };
}

// Biases up to whole blocks.
template <class A>
std::vector<A> padded_bias(const void* bias, int64_t width) {
  std::vector<A> all(whole_blocks<A>(width));
  std::copy_n(static_cast<const A*>(bias), width, all.begin());
  return all;
}

template <class A>
KGREC_INLINE auto store_relu(A* hidden, int64_t stride, const A* bias) {
  return [=](int64_t row, int64_t column, Vec<A> v) {
    v += load(bias + column);
    store(hidden + row * stride + column, v < Vec<A>{} ? Vec<A>{} : v);  // NaN stays NaN
  };
}

template <class A>
void project_typed(const ProjectParams& p, int64_t begin, int64_t end) {
  const Packed<A> w(p.w, p.in, p.out, false);
  multiply_rows<A>(
      row_at<A>(p.x, begin), p.x.stride, end - begin, w,
      store_to(static_cast<A*>(p.y) + begin * p.out, p.out));
}

template <class A>
void project_backward_typed(const ProjectBackwardParams& p, int64_t begin, int64_t end) {
  const ProjectParams& f = p.forward;
  const Packed<A> w(f.w, f.out, f.in, true);
  PaddedRows<A> grad(f.out);
  for (int64_t part = begin; part < end; ++part) {
    A* sum = static_cast<A*>(p.part_sums) + part * f.in * f.out;
    std::fill_n(sum, f.in * f.out, A(0));
    for_tiles(
        part * f.rows / p.num_parts, (part + 1) * f.rows / p.num_parts,
        [&](int64_t first, int64_t rows) {
          const A* g = row_at<A>(p.grad_y, first);
          A* grad_x = static_cast<A*>(p.grad_x) + first * f.in;
          multiply_rows<A>(g, p.grad_y.stride, rows, w, [&](int64_t row, int64_t column, Vec<A> v) {
            if (const int lanes = lanes_at<A>(column, f.in)) {
              A* to = grad_x + row * f.in + column;
              store_n(to, load_n(to, lanes) + v, lanes);
            }
          });
          grad.read(g, p.grad_y.stride, rows);
          add_outer(
              row_at<A>(f.x, first), f.x.stride, f.in, grad.data, grad.stride, f.out, rows, sum);
        });
  }
}

template <class A>
void head_typed(const HeadParams& p, int64_t begin, int64_t end) {
  const Packed<A> w1(p.w1, p.in, p.hidden, true), w2(p.w2, p.hidden, p.out, true);
  const std::vector<A> b1 = padded_bias<A>(p.b1, p.hidden), b2 = padded_bias<A>(p.b2, p.out);
  std::vector<A> hidden(kDenseTile * w1.columns);
  for_tiles(begin, end, [&](int64_t first, int64_t rows) {
    multiply_rows<A>(
        row_at<A>(p.x, first), p.x.stride, rows, w1,
        store_relu(hidden.data(), w1.columns, b1.data()));
    const auto put = store_to(static_cast<A*>(p.y) + first * p.out, p.out);
    multiply_rows<A>(
        hidden.data(), w1.columns, rows, w2, [&](int64_t row, int64_t column, Vec<A> v) {
          put(row, column, v + load(b2.data() + column));
        });
  });
}

template <class A>
void head_backward_typed(const HeadBackwardParams& p, int64_t begin, int64_t end) {
  const HeadParams& f = p.forward;
  const Packed<A> w1(f.w1, f.in, f.hidden, true), w1_back(f.w1, f.hidden, f.in, false);
  const Packed<A> w2_back(f.w2, f.out, f.hidden, false);
  const std::vector<A> b1 = padded_bias<A>(f.b1, f.hidden);
  const int64_t stride = w1.columns;
  std::vector<A> hidden(kDenseTile * stride), grad_hidden(kDenseTile * stride);
  PaddedRows<A> x(f.in), grad(f.out);
  for (int64_t part = begin; part < end; ++part) {
    A* grad_w1 = static_cast<A*>(p.part_sums) + part * f.num_weights();
    A* grad_b1 = grad_w1 + f.hidden * f.in;
    A* grad_w2 = grad_b1 + f.hidden;
    A* grad_b2 = grad_w2 + f.out * f.hidden;
    std::fill_n(grad_w1, f.num_weights(), A(0));
    for_tiles(
        part * f.rows / p.num_parts, (part + 1) * f.rows / p.num_parts,
        [&](int64_t first, int64_t rows) {
          x.read(row_at<A>(f.x, first), f.x.stride, rows);
          grad.read(row_at<A>(p.grad_y, first), p.grad_y.stride, rows);
          multiply_rows<A>(
              x.data, x.stride, rows, w1, store_relu(hidden.data(), stride, b1.data()));
          add_outer(grad.data, grad.stride, f.out, hidden.data(), stride, f.hidden, rows, grad_w2);
          sum_rows(grad.data, grad.stride, f.out, rows, grad_b2);
          multiply_rows<A>(
              grad.data, grad.stride, rows, w2_back, [&](int64_t row, int64_t column, Vec<A> v) {
                const Vec<A> h = load(hidden.data() + row * stride + column);
                store(grad_hidden.data() + row * stride + column, h <= Vec<A>{} ? Vec<A>{} : v);
              });
          add_outer(grad_hidden.data(), stride, f.hidden, x.data, x.stride, f.in, rows, grad_w1);
          sum_rows(grad_hidden.data(), stride, f.hidden, rows, grad_b1);
          multiply_rows<A>(
              grad_hidden.data(), stride, rows, w1_back,
              store_to(static_cast<A*>(p.grad_x) + first * f.in, f.in));
        });
  }
}

}  // namespace

void project_rows(const ProjectParams& p, int64_t begin, int64_t end) {
  for_whole_dtype(p.dtype, [&](auto a) { project_typed<decltype(a)>(p, begin, end); });
}

void project_backward_parts(const ProjectBackwardParams& p, int64_t begin, int64_t end) {
  for_whole_dtype(
      p.forward.dtype, [&](auto a) { project_backward_typed<decltype(a)>(p, begin, end); });
}

void head_rows(const HeadParams& p, int64_t begin, int64_t end) {
  for_whole_dtype(p.dtype, [&](auto a) { head_typed<decltype(a)>(p, begin, end); });
}

void head_backward_parts(const HeadBackwardParams& p, int64_t begin, int64_t end) {
  for_whole_dtype(
      p.forward.dtype, [&](auto a) { head_backward_typed<decltype(a)>(p, begin, end); });
}

void sum_parts(const PartSums& p, int64_t begin, int64_t end) {
  for_whole_dtype(p.dtype, [&](auto a) {
    using A = decltype(a);
    const A* parts = static_cast<const A*>(p.part_sums);
    for_vectors<A>(end - begin, [&](int64_t i, int n) {
      Vec<A> sum{};
      for (int64_t part = 0; part < p.num_parts; ++part) {
        sum += load_n(parts + part * p.size + begin + i, n);
      }
      store_n(static_cast<A*>(p.sum) + begin + i, sum, n);
    });
  });
}
