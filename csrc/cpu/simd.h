// Vectors of KGREC_VECTOR_BYTES, in GCC's portable vector types. Included by foreach_isa.h once for
// every instruction set, inside its namespace: hence no include guard and no includes.

#define KGREC_INLINE inline __attribute__((always_inline))

template <class A>
struct Simd {
  typedef A V __attribute__((vector_size(KGREC_VECTOR_BYTES)));
  static constexpr int W = KGREC_VECTOR_BYTES / sizeof(A);
};
template <class A>
using Vec = typename Simd<A>::V;

typedef uint16_t U16 __attribute__((vector_size(KGREC_VECTOR_BYTES / 2)));
typedef uint32_t U32 __attribute__((vector_size(KGREC_VECTOR_BYTES)));
typedef int32_t I32 __attribute__((vector_size(KGREC_VECTOR_BYTES)));
typedef int64_t I64 __attribute__((vector_size(KGREC_VECTOR_BYTES)));

// Integers as wide as A: what comparisons of vectors give.
template <class A>
using Ints = std::conditional_t<sizeof(A) == 4, I32, I64>;

template <class To, class From>
KGREC_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

template <class A>
KGREC_INLINE Vec<A> splat(A a) {
  return a - Vec<A>{};
}

// -- Loads and stores, widening half types to float ------------------------------------------

KGREC_INLINE Vec<float> widen(const BFloat16&, U16 h) {
  return bit_cast<Vec<float>>(__builtin_convertvector(h, U32) << 16);
}

KGREC_INLINE Vec<float> widen(const Half&, U16 h) {
  const U32 wide = __builtin_convertvector(h, U32);
  const U32 magnitude = (wide & 0x7fff) << 13;
  const U32 normal = magnitude + (112u << 23);
  // A subnormal half is its mantissa times 2^-24: put it under a leading one and take that off.
  const U32 subnormal =
      bit_cast<U32>(bit_cast<Vec<float>>(magnitude + (113u << 23)) - splat<float>(0x1p-14f));
  const U32 special = magnitude | 0x7f800000u;
  const U32 finite = magnitude < (0x400u << 13) ? subnormal : normal;
  const U32 bits = magnitude >= (0x7c00u << 13) ? special : finite;
  return bit_cast<Vec<float>>(bits | ((wide & 0x8000) << 16));
}

KGREC_INLINE U16 narrow(const BFloat16&, Vec<float> x) {
  const U32 bits = bit_cast<U32>(x);
  const U32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const U32 quiet = (bits >> 16) | 0x40;  // NaN must not round to infinity
  return __builtin_convertvector((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded, U16);
}

KGREC_INLINE U16 narrow(const Half&, Vec<float> x) {
  const U32 bits = bit_cast<U32>(x);
  const U32 magnitude = bits & 0x7fffffffu;
  const U32 normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const U32 subnormal =
      bit_cast<U32>(bit_cast<Vec<float>>(magnitude) + splat<float>(0.5f)) - 0x3f000000u;
  const U32 nan = 0x7e00u - U32{};
  const U32 infinity = 0x7c00u - U32{};
  const U32 special = magnitude > 0x7f800000u ? nan : infinity;
  const U32 finite = magnitude < 0x38800000u ? subnormal : normal;
  const U32 half = magnitude >= 0x47800000u ? special : finite;
  return __builtin_convertvector(half | ((bits >> 16) & 0x8000), U16);
}

template <class T>
KGREC_INLINE Vec<acc_t<T>> load(const T* p) {
  if constexpr (sizeof(T) == 2) {
    U16 h;
    std::memcpy(&h, p, sizeof(h));
    return widen(T{}, h);
  } else {
    Vec<T> v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
}

template <class T>
KGREC_INLINE void store(T* p, Vec<acc_t<T>> v) {
  if constexpr (sizeof(T) == 2) {
    const U16 h = narrow(T{}, v);
    std::memcpy(p, &h, sizeof(h));
  } else {
    std::memcpy(p, &v, sizeof(v));
  }
}

// The first n < W elements; the rest of the vector is zero.
#if defined(__x86_64__) && KGREC_VECTOR_BYTES == 64
KGREC_INLINE Vec<float> load_first(const float* p, int n) {
  return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
}
KGREC_INLINE void store_first(float* p, Vec<float> v, int n) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v);
}
#elif defined(__x86_64__) && KGREC_VECTOR_BYTES == 32
KGREC_INLINE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
KGREC_INLINE Vec<float> load_first(const float* p, int n) {
  return _mm256_maskload_ps(p, first_lanes(n));
}
KGREC_INLINE void store_first(float* p, Vec<float> v, int n) {
  _mm256_maskstore_ps(p, first_lanes(n), v);
}
#endif

template <class T>
KGREC_INLINE Vec<acc_t<T>> load_first(const T* p, int n) {
  T buffer[Simd<acc_t<T>>::W] = {};
  std::memcpy(buffer, p, n * sizeof(T));
  return load(buffer);
}

template <class T>
KGREC_INLINE void store_first(T* p, Vec<acc_t<T>> v, int n) {
  T buffer[Simd<acc_t<T>>::W];
  store(buffer, v);
  std::memcpy(p, buffer, n * sizeof(T));
}

// -- Arithmetic ------------------------------------------------------------------------------

template <class A>
KGREC_INLINE Vec<A> vmax(Vec<A> a, Vec<A> b) {
  return a > b ? a : b;
}

// Sum and maximum of the lanes, by halves, always in the same order. Written for each vector size,
// since g++ does not define __AVX2__ and the like below a target pragma.
#if defined(__x86_64__)
KGREC_INLINE float hsum4(__m128 v) {
  v = _mm_add_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps(v, v, 1)));
}
KGREC_INLINE double hsum2(__m128d v) {
  return _mm_cvtsd_f64(_mm_add_sd(v, _mm_unpackhi_pd(v, v)));
}
KGREC_INLINE float hmax4(__m128 v) {
  v = _mm_max_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps(v, v, 1)));
}
KGREC_INLINE double hmax2(__m128d v) {
  return _mm_cvtsd_f64(_mm_max_sd(v, _mm_unpackhi_pd(v, v)));
}
#if KGREC_VECTOR_BYTES == 16
KGREC_INLINE float hsum_lanes(Vec<float> v) {
  return hsum4(v);
}
KGREC_INLINE double hsum_lanes(Vec<double> v) {
  return hsum2(v);
}
KGREC_INLINE float hmax_lanes(Vec<float> v) {
  return hmax4(v);
}
KGREC_INLINE double hmax_lanes(Vec<double> v) {
  return hmax2(v);
}
#else
KGREC_INLINE float hsum8(__m256 v) {
  return hsum4(_mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)));
}
KGREC_INLINE double hsum4(__m256d v) {
  return hsum2(_mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1)));
}
KGREC_INLINE float hmax8(__m256 v) {
  return hmax4(_mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)));
}
KGREC_INLINE double hmax4(__m256d v) {
  return hmax2(_mm_max_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1)));
}
#if KGREC_VECTOR_BYTES == 32
KGREC_INLINE float hsum_lanes(Vec<float> v) {
  return hsum8(v);
}
KGREC_INLINE double hsum_lanes(Vec<double> v) {
  return hsum4(v);
}
KGREC_INLINE float hmax_lanes(Vec<float> v) {
  return hmax8(v);
}
KGREC_INLINE double hmax_lanes(Vec<double> v) {
  return hmax4(v);
}
#else
KGREC_INLINE float hsum_lanes(Vec<float> v) {
  return hsum8(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
}
KGREC_INLINE double hsum_lanes(Vec<double> v) {
  return hsum4(_mm256_add_pd(_mm512_castpd512_pd256(v), _mm512_extractf64x4_pd(v, 1)));
}
KGREC_INLINE float hmax_lanes(Vec<float> v) {
  return hmax8(_mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
}
KGREC_INLINE double hmax_lanes(Vec<double> v) {
  return hmax4(_mm256_max_pd(_mm512_castpd512_pd256(v), _mm512_extractf64x4_pd(v, 1)));
}
#endif
#endif
#else
template <class V>
KGREC_INLINE auto hsum_lanes(V v) {
  auto sum = v[0];
  for (size_t i = 1; i < sizeof(v) / sizeof(sum); ++i) {
    sum += v[i];
  }
  return sum;
}
template <class V>
KGREC_INLINE auto hmax_lanes(V v) {
  auto top = v[0];
  for (size_t i = 1; i < sizeof(v) / sizeof(top); ++i) {
    top = v[i] > top ? v[i] : top;
  }
  return top;
}
#endif

template <class A>
KGREC_INLINE A hsum(Vec<A> v) {
  return hsum_lanes(v);
}

template <class A>
KGREC_INLINE A hmax(Vec<A> v) {
  return hmax_lanes(v);
}

// Lanes of `set` where `bit` of their number is set, else lanes of `clear`.
template <class A>
KGREC_INLINE Vec<A> lanes_by_bit(int bit, Vec<A> set, Vec<A> clear) {
  Ints<A> chosen;
  for (int i = 0; i < Simd<A>::W; ++i) {
    chosen[i] = (i & bit) != 0 ? -1 : 0;
  }
  return chosen ? set : clear;
}

// The first n lanes of v, `rest` in the others.
template <class A>
KGREC_INLINE Vec<A> first_or(Vec<A> v, int n, A rest) {
  Ints<A> lanes;
  for (int i = 0; i < Simd<A>::W; ++i) {
    lanes[i] = i;
  }
  return lanes < n ? v : splat(rest);
}

// The sums of four vectors at once, sharing the work on lanes.
template <class A>
KGREC_INLINE void hsum_four(Vec<A> a, Vec<A> b, Vec<A> c, Vec<A> d, A* sums) {
  const Vec<A> all[] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) {
    sums[i] = hsum<A>(all[i]);
  }
}

#if defined(__x86_64__)
KGREC_INLINE void hsum_four(Vec<float> a, Vec<float> b, Vec<float> c, Vec<float> d, float* sums) {
#if KGREC_VECTOR_BYTES == 64
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 lanes =
      _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 half =
      _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#elif KGREC_VECTOR_BYTES == 32
  const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
  const __m256 half =
      _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#else
  const __m128 ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
  const __m128 cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
  const __m128 four = _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x44), _mm_shuffle_ps(ab, cd, 0xee));
#endif
  _mm_storeu_ps(sums, four);
}
#endif

// e^x to about one unit in the last place. Results below the smallest normal number are 0; infinity
// and NaN keep their meaning. x = n ln 2 + r, e^r by its series, 2^n through the exponent bits.
KGREC_INLINE Vec<float> vexp(Vec<float> x) {
  const Vec<float> low = splat(-87.33654f), high = splat(88.72283f);
  const Vec<float> shift = splat(0x1.8p23f);
  const Vec<float> y = x < low ? low : (x > high ? high : x);
  const Vec<float> shifted = y * splat(1.44269504f) + shift;
  const Vec<float> n = shifted - shift;
  const Vec<float> r = (y - n * splat(0.693145752f)) - n * splat(1.42860677e-6f);
  Vec<float> p = splat(1.0f / 5040);
  p = p * r + splat(1.0f / 720);
  p = p * r + splat(1.0f / 120);
  p = p * r + splat(1.0f / 24);
  p = p * r + splat(1.0f / 6);
  p = p * r + splat(0.5f);
  p = p * r + splat(1.0f);
  p = p * r + splat(1.0f);
  // In two factors: 2^128 is no float, but e^x just below the overflow needs n = 128.
  const I32 whole = bit_cast<I32>(shifted) - 0x4b400000;
  const I32 half = whole >> 1;
  p = p * bit_cast<Vec<float>>((half + 127) << 23);
  p = p * bit_cast<Vec<float>>((whole - half + 127) << 23);
  p = x > high ? splat(std::numeric_limits<float>::infinity()) : p;
  return x < low ? Vec<float>{} : p;
}

KGREC_INLINE Vec<double> vexp(Vec<double> x) {
  const Vec<double> low = splat(-708.39641853226408), high = splat(709.78271289338397);
  const Vec<double> shift = splat(0x1.8p52);
  const Vec<double> y = x < low ? low : (x > high ? high : x);
  const Vec<double> shifted = y * splat(1.4426950408889634) + shift;
  const Vec<double> n = shifted - shift;
  const Vec<double> r = (y - n * splat(0x1.62e42fefa0000p-1)) - n * splat(0x1.cf79abc9e3b3ap-40);
  Vec<double> p = splat(1.0 / 6227020800.0);
  const double inverse_factorial[] = {1.0 / 479001600,
                                      1.0 / 39916800,
                                      1.0 / 3628800,
                                      1.0 / 362880,
                                      1.0 / 40320,
                                      1.0 / 5040,
                                      1.0 / 720,
                                      1.0 / 120,
                                      1.0 / 24,
                                      1.0 / 6,
                                      0.5,
                                      1.0,
                                      1.0};
#pragma GCC unroll 13
  for (int i = 0; i < 13; ++i) {
    p = p * r + splat(inverse_factorial[i]);
  }
  const I64 whole = bit_cast<I64>(shifted) - 0x4338000000000000;
  const I64 half = whole >> 1;
  p = p * bit_cast<Vec<double>>((half + 1023) << 52);
  p = p * bit_cast<Vec<double>>((whole - half + 1023) << 52);
  p = x > high ? splat(std::numeric_limits<double>::infinity()) : p;
  return x < low ? Vec<double>{} : p;
}

// -- Parts of the work -----------------------------------------------------------------------

// Calls f(row, begin, end, piece) for every stretch of edges in a part. `piece` is -1 for a whole
// row; else the row is shared with neighbouring parts, and `piece` numbers the place, in order,
// where this share of its result belongs: 2 * part where it began earlier, 2 * part + 1 where it
// begins here.
template <class F>
KGREC_INLINE void for_stretches(const OrderView& order, int64_t part, F&& f) {
  int64_t row = order.part_row[part], begin = order.part_edge[part];
  const int64_t last = order.part_row[part + 1], stop = order.part_edge[part + 1];
  const bool shared = row < order.num_rows && begin > order.ptr[row];
  int64_t piece = shared ? 2 * part : -1;
  for (; row < last; ++row) {
    const int64_t end = order.ptr[row + 1];
    f(row, begin, end, piece);
    begin = end;
    piece = -1;
  }
  if (begin < stop) {
    f(row, begin, stop, piece >= 0 ? piece : 2 * part + 1);
  }
}
