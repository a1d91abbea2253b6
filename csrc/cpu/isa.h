// The instruction set that CPU kernels run on, chosen when the library is loaded.
#pragma once

#include <cstdint>

#include "common/types.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define KGREC_X86_VARIANTS 1
#else
#define KGREC_X86_VARIANTS 0
#endif

namespace kgrec::cpu {

enum class Isa : int64_t { baseline = 0, avx2 = 1, avx512 = 2 };

// The one in use: the best of the machine, or what KGREC_FAST_ISA names.
Isa active_isa();

// The one in use, or a narrower one where a head, of so many numbers of the type they are added up
// in, fills half of a vector at most.
Isa isa_for_head(int64_t head_width, DType dtype);

// Calls `function` of the namespace of an instruction set, the active one if none is named.
#if KGREC_X86_VARIANTS
#define KGREC_CALL_ON(isa, function, ...)                                           \
  ((isa) == ::kgrec::cpu::Isa::avx512 ? ::kgrec::cpu::avx512::function(__VA_ARGS__) \
   : (isa) == ::kgrec::cpu::Isa::avx2 ? ::kgrec::cpu::avx2::function(__VA_ARGS__)   \
                                      : ::kgrec::cpu::baseline::function(__VA_ARGS__))
#else
#define KGREC_CALL_ON(isa, function, ...) \
  ((void)(isa), ::kgrec::cpu::baseline::function(__VA_ARGS__))
#endif
#define KGREC_ISA_CALL(function, ...) \
  KGREC_CALL_ON(::kgrec::cpu::active_isa(), function, __VA_ARGS__)

}  // namespace kgrec::cpu
