// Compiles the kernels in KGREC_KERNELS once for every instruction set, each in a namespace of its
// own: kgrec::cpu::{baseline, avx2, avx512}. Every header that the kernels need must be included
// before this one, since what stands below the pragma is compiled for that instruction set.

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <vector>

#include "common/graph_view.h"
#include "common/types.h"
#include "cpu/isa.h"

#ifndef KGREC_KERNELS
#error "define KGREC_KERNELS as the header to compile for each instruction set"
#endif

#define KGREC_VECTOR_BYTES 16
namespace kgrec::cpu::baseline {
#include "cpu/simd.h"
// rows of vectors, which come after vectors
#include "cpu/shapes.h"
// edges of a part, which come after rows
#include "cpu/kept_edges.h"
#include KGREC_KERNELS
}  // namespace kgrec::cpu::baseline
#undef KGREC_VECTOR_BYTES

#if KGREC_X86_VARIANTS
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi2")
#define KGREC_VECTOR_BYTES 32
namespace kgrec::cpu::avx2 {
#include "cpu/simd.h"
// rows of vectors, which come after vectors
#include "cpu/shapes.h"
// edges of a part, which come after rows
#include "cpu/kept_edges.h"
#include KGREC_KERNELS
}  // namespace kgrec::cpu::avx2
#undef KGREC_VECTOR_BYTES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi2,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define KGREC_VECTOR_BYTES 64
namespace kgrec::cpu::avx512 {
#include "cpu/simd.h"
// rows of vectors, which come after vectors
#include "cpu/shapes.h"
// edges of a part, which come after rows
#include "cpu/kept_edges.h"
#include KGREC_KERNELS
}  // namespace kgrec::cpu::avx512
#undef KGREC_VECTOR_BYTES
#pragma GCC pop_options
#endif
