// The instruction set that CPU kernels run on, chosen when the library is loaded.
#pragma once

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define KGREC_X86_VARIANTS 1
#else
#define KGREC_X86_VARIANTS 0
#endif

namespace kgrec::cpu {

enum class Isa : int64_t { baseline = 0, avx2 = 1, avx512 = 2 };

// The one in use: the best of the machine, or what KGREC_FAST_ISA names.
Isa active_isa();

// Calls `function` of the namespace of the active instruction set.
#if KGREC_X86_VARIANTS
#define KGREC_ISA_CALL(function, ...)                      \
  (::kgrec::cpu::active_isa() == ::kgrec::cpu::Isa::avx512 \
       ? ::kgrec::cpu::avx512::function(__VA_ARGS__)       \
   : ::kgrec::cpu::active_isa() == ::kgrec::cpu::Isa::avx2 \
       ? ::kgrec::cpu::avx2::function(__VA_ARGS__)         \
       : ::kgrec::cpu::baseline::function(__VA_ARGS__))
#else
#define KGREC_ISA_CALL(function, ...) ::kgrec::cpu::baseline::function(__VA_ARGS__)
#endif

}  // namespace kgrec::cpu
