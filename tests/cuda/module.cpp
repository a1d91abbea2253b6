// The Python module: numpy arrays straight to the entry points.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "entry.h"

namespace py = pybind11;

namespace kgrec::cuda_host {
namespace {

Array to_array(const std::string& name, const py::array& from) {
  Array a;
  a.data = const_cast<void*>(from.data());
  a.kind = from.dtype().kind();
  a.item_bytes = static_cast<int>(from.itemsize());
  a.writable = from.writeable();
  a.shape.assign(from.shape(), from.shape() + from.ndim());
  int64_t row = 1;
  for (py::ssize_t d = from.ndim() - 1; d > 0; --d) {
    if (from.size() > 0 && from.shape(d) > 1 && from.strides(d) != row * from.itemsize()) {
      throw std::invalid_argument("array " + name + " has gaps within a row");
    }
    row *= from.shape(d);
  }
  a.row_stride = row;
  if (from.size() > 0 && from.ndim() > 0 && from.shape(0) > 1) {
    a.row_stride = from.strides(0) / from.itemsize();
    if (a.row_stride < row || (from.ndim() == 1 && a.row_stride != 1)) {
      throw std::invalid_argument("array " + name + " is strided in a way kernels do not take");
    }
  }
  return a;
}

py::list run(
    const std::string& name, const std::map<std::string, py::array>& arrays,
    std::map<std::string, int64_t> integers, std::map<std::string, double> numbers,
    std::map<std::string, std::string> texts, const std::string& order, uint64_t seed,
    unsigned max_blocks, bool count) {
  Args args;
  for (const auto& [key, value] : arrays) {
    args.arrays[key] = to_array(key, value);
  }
  args.integers = std::move(integers);
  args.numbers = std::move(numbers);
  args.texts = std::move(texts);
  args.launcher = {{order_of(order), seed}, max_blocks};
  count_traffic(count);
  run_entry(name, args);
  py::list traffic;
  for (const Traffic& t : counted_traffic()) {
    traffic.append(py::make_tuple(t.site, t.array, t.write, t.executions, t.sectors, t.bytes));
  }
  return traffic;
}

}  // namespace
}  // namespace kgrec::cuda_host

PYBIND11_MODULE(kgrec_cuda_host, m) {
  m.def("run", &kgrec::cuda_host::run);
  m.def("entry_names", &kgrec::cuda_host::entry_names);
}
