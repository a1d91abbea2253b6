// A row of a matrix. Included by kernels, inside their namespace.

template <class T>
KGREC_INLINE const T* row_at(const Matrix& x, int64_t row) {
  return static_cast<const T*>(x.data) + row * x.stride;
}
