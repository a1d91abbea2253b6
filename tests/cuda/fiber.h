// Stacks and switches between them, for x86-64 and System V's calling convention.
#pragma once

#include <cstddef>

#ifndef __x86_64__
#error "the emulator switches stacks in x86-64 assembly"
#endif

namespace kgrec::cuda_host {

// Memory for the stack of one fiber, below it a page that must not be touched.
class Stack {
 public:
  Stack() = default;
  Stack(const Stack&) = delete;
  Stack(Stack&& other) noexcept : low_(other.low_), bytes_(other.bytes_) { other.low_ = nullptr; }
  ~Stack();

  void allocate();
  // Leaves on the stack what the first switch to it needs to call `entry`, which must not return.
  // `colour` spreads the tops of many stacks over the sets of the cache.
  void* prepare(void (*entry)(), unsigned colour);

  const void* low() const { return low_; }
  size_t bytes() const { return bytes_; }

 private:
  char* low_ = nullptr;
  size_t bytes_ = 0;
};

// A flow of control that is not running: where its stack stands.
struct Context {
  void* sp = nullptr;
  const Stack* stack = nullptr;  // null for the thread's own stack
};

// Goes on with `to`; returns when somebody switches back to `from`.
void switch_context(Context& from, Context& to);
// The same, where `from` is not to be continued.
void leave_context(Context& from, Context& to);
// The first thing that a fiber's entry calls.
void enter_context();

}  // namespace kgrec::cuda_host
