#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// kgrec_switch_stack(void** save, void* load): keeps the registers that a call must preserve on the
// old stack and takes them from the new one.
extern "C" void kgrec_switch_stack(void** save, void* load);
asm(R"(
.text
.globl kgrec_switch_stack
.hidden kgrec_switch_stack
.type kgrec_switch_stack, @function
kgrec_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size kgrec_switch_stack, .-kgrec_switch_stack
)");

namespace kgrec::cuda_host {
namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStackBytes = 256 << 10;  // redzones make frames large
#else
constexpr size_t kStackBytes = 64 << 10;
#endif
constexpr int kSavedRegisters = 6;
constexpr unsigned kColours = 32;
constexpr size_t kColourBytes = 128;

#ifdef __SANITIZE_ADDRESS__
// The thread's own stack, as the sanitizer describes it at the first switch away from it.
const void* thread_stack = nullptr;
size_t thread_stack_bytes = 0;

void start_switch(void** fake_stack, const Context& to) {
  const void* low = to.stack != nullptr ? to.stack->low() : thread_stack;
  const size_t bytes = to.stack != nullptr ? to.stack->bytes() : thread_stack_bytes;
  __sanitizer_start_switch_fiber(fake_stack, low, bytes);
}
#endif

}  // namespace

Stack::~Stack() {
  if (low_ != nullptr) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    munmap(low_ - page, bytes_ + page);
  }
}

void Stack::allocate() {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory =
      mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) {
    throw std::bad_alloc();
  }
  low_ = static_cast<char*>(memory) + page;
  bytes_ = kStackBytes;
}

void* Stack::prepare(void (*entry)(), unsigned colour) {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(low_, bytes_);  // an abandoned fiber leaves its redzones
#endif
  auto top = reinterpret_cast<void**>(low_ + bytes_ - (colour % kColours) * kColourBytes);
  // At its entry a function finds the stack pointer 8 below a multiple of 16, at its return
  // address.
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) {
    *--top = nullptr;
  }
  return top;
}

void switch_context(Context& from, Context& to) {
#ifdef __SANITIZE_ADDRESS__
  void* fake_stack = nullptr;
  start_switch(&fake_stack, to);
  kgrec_switch_stack(&from.sp, to.sp);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#else
  kgrec_switch_stack(&from.sp, to.sp);
#endif
}

void leave_context(Context& from, Context& to) {
#ifdef __SANITIZE_ADDRESS__
  start_switch(nullptr, to);
#endif
  kgrec_switch_stack(&from.sp, to.sp);
}

void enter_context() {
#ifdef __SANITIZE_ADDRESS__
  const void* low = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &low, &bytes);
  if (thread_stack == nullptr) {
    thread_stack = low;
    thread_stack_bytes = bytes;
  }
#endif
}

}  // namespace kgrec::cuda_host
