#include "entry.h"

#include <cstring>
#include <stdexcept>

namespace kgrec::cuda_host {
namespace {

// A function, since entry points register themselves before main.
std::map<std::string, Entry>& registry() {
  static std::map<std::string, Entry> entries;
  return entries;
}

template <class T>
const T& find(const std::map<std::string, T>& values, const std::string& name, const char* kind) {
  const auto found = values.find(name);
  if (found == values.end()) {
    throw std::invalid_argument(std::string("no ") + kind + " named " + name + " was given");
  }
  return found->second;
}

struct RangesOfThisCall {
  RangesOfThisCall() { forget_ranges(); }
  ~RangesOfThisCall() { forget_ranges(); }
};

}  // namespace

Order::Kind order_of(const std::string& name) {
  if (name == "forward") {
    return Order::kForward;
  }
  if (name == "backward") {
    return Order::kBackward;
  }
  if (name == "shuffled") {
    return Order::kShuffled;
  }
  throw std::invalid_argument("order is " + name + ", expected forward, backward or shuffled");
}

const Array& Args::array(const std::string& name) {
  used_[name] = true;
  return find(arrays, name, "array");
}

void* Args::fetch(
    const std::string& name, char kind, size_t item_bytes, bool write, bool optional) {
  if (optional && !has(name)) {
    return nullptr;
  }
  const Array& a = array(name);
  // Half types travel as 16-bit integers, masks as bool.
  const bool same_kind = a.kind == kind || (item_bytes == 2 && kind == 'f' && a.kind == 'u') ||
                         (item_bytes == 1 && a.kind == 'b');
  if (!same_kind || a.item_bytes != static_cast<int>(item_bytes)) {
    throw std::invalid_argument(
        "array " + name + " is of type " + a.kind + std::to_string(a.item_bytes) + ", expected " +
        kind + std::to_string(item_bytes));
  }
  if (write && !a.writable) {
    throw std::invalid_argument("array " + name + " is written to, but read-only in the caller");
  }
  int64_t elements = 1;
  for (const int64_t n : a.shape) {
    elements *= n;
  }
  if (elements > 0 && a.shape.size() > 1) {
    const int64_t row = elements / a.shape[0];
    elements = (a.shape[0] - 1) * a.row_stride + row;
  }
  allow_range(a.data, static_cast<size_t>(elements) * item_bytes, write, name);
  return a.data;
}

const void* Args::in(const std::string& name, DType dtype) {
  return fetch(name, 'f', static_cast<size_t>(element_bytes(dtype)), false, false);
}
const void* Args::in_or_null(const std::string& name, DType dtype) {
  return fetch(name, 'f', static_cast<size_t>(element_bytes(dtype)), false, true);
}
void* Args::out(const std::string& name, DType dtype) {
  return fetch(name, 'f', static_cast<size_t>(element_bytes(dtype)), true, false);
}
void* Args::out_or_null(const std::string& name, DType dtype) {
  return fetch(name, 'f', static_cast<size_t>(element_bytes(dtype)), true, true);
}

void* Args::make_workspace(const std::string& name, int64_t bytes) {
  workspaces_.emplace_back(new char[bytes]);
  void* data = workspaces_.back().get();
  std::memset(data, 0xFF, bytes);
  allow_range(data, bytes, true, name);
  return data;
}

int64_t Args::size(const std::string& name, int dim) {
  const Array& a = array(name);
  if (dim < 0 || dim >= static_cast<int>(a.shape.size())) {
    throw std::invalid_argument("array " + name + " has no dimension " + std::to_string(dim));
  }
  return a.shape[dim];
}

int64_t Args::row_stride(const std::string& name) {
  return array(name).row_stride;
}

int64_t Args::integer(const std::string& name) {
  used_[name] = true;
  return find(integers, name, "integer");
}

int64_t Args::integer(const std::string& name, int64_t otherwise) {
  return integers.count(name) != 0 ? integer(name) : otherwise;
}

double Args::number(const std::string& name) {
  used_[name] = true;
  return find(numbers, name, "number");
}

std::string Args::text(const std::string& name) {
  used_[name] = true;
  return find(texts, name, "text");
}

DType Args::dtype(const std::string& name) {
  const std::map<std::string, DType> all = {
      {"f32", DType::f32}, {"f64", DType::f64}, {"bf16", DType::bf16}, {"f16", DType::f16}};
  return find(all, text(name), "dtype");
}

void Args::check_all_used() const {
  const auto check = [&](const auto& values) {
    for (const auto& item : values) {
      if (used_.count(item.first) == 0) {
        throw std::invalid_argument("argument " + item.first + " was given, but never asked for");
      }
    }
  };
  check(arrays);
  check(integers);
  check(numbers);
  check(texts);
}

RegisterEntry::RegisterEntry(const char* name, Entry entry) {
  if (!registry().emplace(name, entry).second) {
    throw std::logic_error(std::string("two entry points are named ") + name);
  }
}

void run_entry(const std::string& name, Args& args) {
  const RangesOfThisCall ranges;
  find(registry(), name, "entry point")(args);
  args.check_all_used();
}

std::vector<std::string> entry_names() {
  std::vector<std::string> names;
  for (const auto& item : registry()) {
    names.push_back(item.first);
  }
  return names;
}

}  // namespace kgrec::cuda_host
