#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <string>

#include <torch/csrc/stable/library.h>

namespace kgrec::cpu {
namespace {

bool machine_has(Isa isa) {
#if KGREC_X86_VARIANTS
  __builtin_cpu_init();
  if (isa == Isa::avx2) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi2");
  }
  if (isa == Isa::avx512) {
    return machine_has(Isa::avx2) && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
  }
#endif
  return isa == Isa::baseline;
}

Isa best() {
  return machine_has(Isa::avx512) ? Isa::avx512
         : machine_has(Isa::avx2) ? Isa::avx2
                                  : Isa::baseline;
}

Isa chosen() {
  const char* wish = std::getenv("KGREC_FAST_ISA");
  if (wish == nullptr || *wish == '\0') {
    return best();
  }
  const std::string names[] = {"baseline", "avx2", "avx512"};
  for (int64_t i = 0; i < 3; ++i) {
    if (names[i] == wish) {
      STD_TORCH_CHECK(
          machine_has(Isa(i)), "KGREC_FAST_ISA is ", wish, ", which this machine does not have");
      return Isa(i);
    }
  }
  STD_TORCH_CHECK(false, "KGREC_FAST_ISA is ", wish, ", expected baseline, avx2 or avx512");
}

std::atomic<int64_t>& current() {
  static std::atomic<int64_t> value{int64_t(chosen())};
  return value;
}

// With -1 the instruction set in use, else switches to `wanted` where the machine has it.
int64_t isa(int64_t wanted) {
  if (wanted >= 0 && wanted <= int64_t(Isa::avx512) && machine_has(Isa(wanted))) {
    current().store(wanted);
  }
  return current().load();
}

}  // namespace

Isa active_isa() {
  return Isa(current().load(std::memory_order_relaxed));
}

Isa isa_for_head(int64_t head_width, DType dtype) {
  // Not below avx2: to do without fused products costs more than to pad a vector.
  constexpr int64_t kAvx2Bytes = 32;
  const bool fits = head_width * element_bytes(accumulate(dtype)) <= kAvx2Bytes;
  return fits && active_isa() == Isa::avx512 ? Isa::avx2 : active_isa();
}

}  // namespace kgrec::cpu

STABLE_TORCH_LIBRARY_IMPL(kgrec_fast, CompositeExplicitAutograd, m) {
  m.impl("_isa", TORCH_BOX(&kgrec::cpu::isa));
}
