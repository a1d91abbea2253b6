// Entry points: kernels by name, with arrays and numbers by name. One .cpp of this folder for each
// family of ops holds its entry points; the Python module and the program for AddressSanitizer call
// them alike.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/types.h"
#include "memory.h"
#include "scheduler.h"

namespace kgrec::cuda_host {

// Memory of the caller. Rows may lie apart; within a row elements are neighbours.
struct Array {
  void* data = nullptr;
  char kind = 'f';  // as numpy's: f, i, u, b
  int item_bytes = 4;
  std::vector<int64_t> shape;
  int64_t row_stride = 0;  // elements
  bool writable = true;    // where the caller may be written to
};

Order::Kind order_of(const std::string& name);  // forward, backward, shuffled

// Runs kernels in the order of the test, as OnStream of csrc/cuda runs them on a GPU: launches_x of
// an X.cuh takes either.
struct Launcher {
  Order order;
  unsigned max_blocks = 0;  // 0: as many as the launch wants

  template <class P, class Geometry>
  void operator()(void (*kernel)(P), const Geometry& geometry, const P& params) const {
    if (geometry.blocks > 0) {
      (*this)(kernel, geometry.blocks, geometry.threads, geometry.shared_bytes, params);
    }
  }
  template <class P>
  void operator()(
      void (*kernel)(P), unsigned grid, unsigned block, size_t shared_bytes,
      const P& params) const {
    const unsigned blocks = max_blocks != 0 && max_blocks < grid ? max_blocks : grid;
    launch(kernel, dim3(blocks), dim3(block), shared_bytes, params, order);
  }
};

// Errors in what Python gave are std::invalid_argument (ValueError).
class Args {
 public:
  std::map<std::string, Array> arrays;
  std::map<std::string, int64_t> integers;
  std::map<std::string, double> numbers;
  std::map<std::string, std::string> texts;
  Launcher launcher;

  // Pointers to arrays, which become memory that kernels may read (in) or read and write (out).
  // in_or_null and out_or_null serve operands that may be absent.
  template <class T>
  const T* in(const std::string& name) {
    return static_cast<const T*>(fetch(name, kind_of<T>(), sizeof(T), false, false));
  }
  template <class T>
  const T* in_or_null(const std::string& name) {
    return static_cast<const T*>(fetch(name, kind_of<T>(), sizeof(T), false, true));
  }
  template <class T>
  T* out(const std::string& name) {
    return static_cast<T*>(fetch(name, kind_of<T>(), sizeof(T), true, false));
  }
  template <class T>
  T* out_or_null(const std::string& name) {
    return static_cast<T*>(fetch(name, kind_of<T>(), sizeof(T), true, true));
  }
  // The same where the type is known at run time only.
  const void* in(const std::string& name, DType dtype);
  const void* in_or_null(const std::string& name, DType dtype);
  void* out(const std::string& name, DType dtype);
  void* out_or_null(const std::string& name, DType dtype);

  // Memory for the length of the call, filled with 0xFF bytes (NaN).
  template <class T>
  T* workspace(const std::string& name, int64_t count) {
    return static_cast<T*>(make_workspace(name, count * static_cast<int64_t>(sizeof(T))));
  }

  void* workspace(const std::string& name, DType dtype, int64_t count) {
    return make_workspace(name, count * element_bytes(dtype));
  }

  bool has(const std::string& name) const { return arrays.count(name) != 0; }
  int64_t size(const std::string& name, int dim = 0);
  int64_t row_stride(const std::string& name);  // elements

  int64_t integer(const std::string& name);
  int64_t integer(const std::string& name, int64_t otherwise);
  double number(const std::string& name);
  std::string text(const std::string& name);
  DType dtype(const std::string& name = "dtype");  // a text: f32, f64, bf16, f16

  // Every argument given must have been asked for.
  void check_all_used() const;

 private:
  template <class T>
  static constexpr char kind_of();
  const Array& array(const std::string& name);
  void* fetch(const std::string& name, char kind, size_t item_bytes, bool write, bool optional);
  void* make_workspace(const std::string& name, int64_t bytes);

  std::map<std::string, bool> used_;
  std::vector<std::unique_ptr<char[]>> workspaces_;
};

template <class T>
constexpr char Args::kind_of() {
  if constexpr (std::is_integral_v<T>) {
    return std::is_signed_v<T> ? 'i' : 'u';
  } else {
    return 'f';
  }
}

using Entry = void (*)(Args&);

struct RegisterEntry {
  RegisterEntry(const char* name, Entry entry);
};

// Runs an entry point; only the memory that it asks for may be touched meanwhile.
void run_entry(const std::string& name, Args& args);
std::vector<std::string> entry_names();

}  // namespace kgrec::cuda_host

// KGREC_ENTRY(name) { ... args ... }
#define KGREC_ENTRY(name)                                                                \
  static void name##_entry(::kgrec::cuda_host::Args& args);                              \
  static const ::kgrec::cuda_host::RegisterEntry name##_registered(#name, name##_entry); \
  static void name##_entry(::kgrec::cuda_host::Args& args)
