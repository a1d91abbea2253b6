// What CUDA gives a kernel, for g++. Included by csrc/cuda/device.cuh where KGREC_CUDA_HOST is
// defined. Only what the rules of kernels allow is here: anything else does not compile.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "memory.h"
#include "scheduler.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

// -- Shared memory ---------------------------------------------------------------------------

namespace kgrec::cuda_host {

// Stands for an array of shared memory; knows its size.
template <class T>
class SharedArray {
 public:
  SharedArray(void* data, size_t count, const char* name, Site site)
      : data_(static_cast<T*>(data)), count_(count), name_(name), site_(site) {}

  T& operator[](ptrdiff_t i) const {
    if (i < 0 || static_cast<size_t>(i) >= count_) {
      fail(
          site_, "index " + std::to_string(i) + " of shared array " + name_ + ", which has " +
                     std::to_string(count_) + " elements");
    }
    return data_[i];
  }
  operator T*() const { return data_; }

 private:
  T* data_;
  size_t count_;
  const char* name_;
  Site site_;  // of the declaration
};

template <class T>
SharedArray<T> dynamic_shared_array(const char* name, Site site = Site::here()) {
  size_t bytes = 0;
  void* data = dynamic_shared(&bytes);
  return SharedArray<T>(data, bytes / sizeof(T), name, site);
}

}  // namespace kgrec::cuda_host

#define KGREC_SHARED(type, name, count)                                                      \
  alignas(16) static unsigned char name##_storage[sizeof(type) * (count)];                   \
  const ::kgrec::cuda_host::SharedArray<type> name(                                          \
      ::kgrec::cuda_host::enter_shared_array(name##_storage, sizeof(name##_storage)), count, \
      #name, ::kgrec::cuda_host::Site::here())
#define KGREC_DYNAMIC_SHARED(type, name)             \
  const ::kgrec::cuda_host::SharedArray<type> name = \
      ::kgrec::cuda_host::dynamic_shared_array<type>(#name)

// -- Shuffles, votes, barriers ---------------------------------------------------------------

#define KGREC_SITE ::kgrec::cuda_host::Site site = ::kgrec::cuda_host::Site::here()

namespace kgrec::cuda_host {

template <class T>
T exchange(Primitive primitive, unsigned mask, T value, int source, Site site) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "as CUDA");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = meet_warp(primitive, mask, bits, source, site);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// A shuffle of `width` lanes stays in its segment of the warp.
inline int segment_begin(int width) {
  return current_lane() & ~(width - 1);
}

}  // namespace kgrec::cuda_host

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, KGREC_SITE) {
  using namespace kgrec::cuda_host;
  const int lane = segment_begin(width) + (source & (width - 1));
  return exchange(Primitive::kShfl, mask, value, lane, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, KGREC_SITE) {
  using namespace kgrec::cuda_host;
  const int lane = current_lane() - static_cast<int>(delta);
  return exchange(
      Primitive::kUp, mask, value, lane >= segment_begin(width) ? lane : current_lane(), site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, KGREC_SITE) {
  using namespace kgrec::cuda_host;
  const int lane = current_lane() + static_cast<int>(delta);
  const bool inside = lane < segment_begin(width) + width;
  return exchange(Primitive::kDown, mask, value, inside ? lane : current_lane(), site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, KGREC_SITE) {
  using namespace kgrec::cuda_host;
  const int lane = current_lane() ^ lane_mask;
  const bool inside = lane < segment_begin(width) + width;
  return exchange(Primitive::kXor, mask, value, inside ? lane : current_lane(), site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, KGREC_SITE) {
  using namespace kgrec::cuda_host;
  return static_cast<unsigned>(meet_warp(Primitive::kBallot, mask, predicate != 0, 0, site));
}
inline int __any_sync(unsigned mask, int predicate, KGREC_SITE) {
  using namespace kgrec::cuda_host;
  return static_cast<int>(meet_warp(Primitive::kAny, mask, predicate != 0, 0, site));
}
inline int __all_sync(unsigned mask, int predicate, KGREC_SITE) {
  using namespace kgrec::cuda_host;
  return static_cast<int>(meet_warp(Primitive::kAll, mask, predicate != 0, 0, site));
}
inline void __syncwarp(unsigned mask = 0xffffffffu, KGREC_SITE) {
  using namespace kgrec::cuda_host;
  meet_warp(Primitive::kSyncwarp, mask, 0, 0, site);
}
inline void __syncthreads(KGREC_SITE) {
  kgrec::cuda_host::meet_block(site);
}

// -- Integer atomics -------------------------------------------------------------------------

namespace kgrec::cuda_host {

template <class T, class F>
T atomic(T* p, F&& change, Site site) {
  check_read(p, sizeof(T), alignof(T), site);
  check_write(p, sizeof(T), alignof(T), site);
  const T old = *p;
  *p = change(old);
  return old;
}

}  // namespace kgrec::cuda_host

#define KGREC_ATOMIC(name, type, expression)                                                \
  inline type name(type* p, type x, KGREC_SITE) {                                           \
    return kgrec::cuda_host::atomic(p, [&](type old) -> type { return expression; }, site); \
  }
#define KGREC_ATOMIC_ALL(name, expression) \
  KGREC_ATOMIC(name, int, expression)      \
  KGREC_ATOMIC(name, unsigned, expression) \
  KGREC_ATOMIC(name, unsigned long long, expression)
KGREC_ATOMIC_ALL(atomicAdd, old + x)
KGREC_ATOMIC_ALL(atomicMin, x < old ? x : old)
KGREC_ATOMIC_ALL(atomicMax, x > old ? x : old)
KGREC_ATOMIC_ALL(atomicAnd, old& x)
KGREC_ATOMIC_ALL(atomicOr, old | x)
KGREC_ATOMIC_ALL(atomicXor, old ^ x)
KGREC_ATOMIC_ALL(atomicExch, (static_cast<void>(old), x))
KGREC_ATOMIC(atomicMin, long long, x < old ? x : old)
KGREC_ATOMIC(atomicMax, long long, x > old ? x : old)
#undef KGREC_ATOMIC_ALL
#undef KGREC_ATOMIC

template <class T>
T atomicCAS(T* p, T compare, T value, KGREC_SITE) {
  static_assert(
      std::is_same_v<T, int> || std::is_same_v<T, unsigned> ||
      std::is_same_v<T, unsigned long long>);
  return kgrec::cuda_host::atomic(p, [&](T old) { return old == compare ? value : old; }, site);
}
#undef KGREC_SITE

// -- Numbers ---------------------------------------------------------------------------------

inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __popcll(unsigned long long x) {
  return __builtin_popcountll(x);
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline int __ffsll(long long x) {
  return __builtin_ffsll(x);
}
inline int __clz(int x) {
  return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x));
}
inline int __clzll(long long x) {
  return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((uint64_t{a} * b) >> 32);
}

namespace kgrec::cuda_host {

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace kgrec::cuda_host

inline float __uint_as_float(unsigned x) {
  return kgrec::cuda_host::bits_as<float>(x);
}
inline unsigned __float_as_uint(float x) {
  return kgrec::cuda_host::bits_as<unsigned>(x);
}
inline float __int_as_float(int x) {
  return kgrec::cuda_host::bits_as<float>(x);
}
inline int __float_as_int(float x) {
  return kgrec::cuda_host::bits_as<int>(x);
}
inline double __longlong_as_double(long long x) {
  return kgrec::cuda_host::bits_as<double>(x);
}
inline long long __double_as_longlong(double x) {
  return kgrec::cuda_host::bits_as<long long>(x);
}

// Never contracted to a multiplication and addition in one rounding, here as there.
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fmaf_rn(float a, float b, float c) {
  return fmaf(a, b, c);
}
inline double __dadd_rn(double a, double b) {
  return a + b;
}
inline double __dmul_rn(double a, double b) {
  return a * b;
}

inline float rsqrtf(float x) {
  return 1.0f / sqrtf(x);
}
inline double rsqrt(double x) {
  return 1.0 / sqrt(x);
}

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}
