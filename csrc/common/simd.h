// One vector type for the kernels: Vec<float> and Vec<double>.
//
// Only sources listed as GINR_SIMD_SOURCES in CMakeLists.txt may include this. They are compiled
// once a path with that path's instructions, so everything in them lives in namespace
// ginr::GINR_SIMD (portable, avx2, avx512, amx) and none may use standard library templates: the linker
// keeps one copy of an inline function for the whole module, and it might keep the AVX-512 one.
#pragma once

#include <cstdint>
#include <cstring>
#if GINR_SIMD_IS_avx2 || GINR_SIMD_IS_avx512
#include <immintrin.h>
#endif

namespace ginr {
namespace GINR_SIMD {

template <class T>
struct Vec;

// Asks for the cache line at p to be brought near; p may point anywhere.
inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

// Sanitizers do not see what masked and streaming instructions touch: n numbers from p on.
template <class T>
inline void reach([[maybe_unused]] const T* p, [[maybe_unused]] int64_t n) {
#if defined(GINR_SANITIZE)
  if (n > 0) {
    (void)*static_cast<const volatile T*>(p);
    (void)*static_cast<const volatile T*>(p + n - 1);
  }
#endif
}

#if GINR_SIMD_IS_avx512

constexpr bool kWideRegisters = true;  // 32 vector registers

template <>
struct Vec<float> {
  static constexpr int64_t width = 16;
  __m512 v;
  static Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load_first(const float* p, int64_t n) {
    reach(p, n);
    return {_mm512_maskz_loadu_ps(mask(n), p)};
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store_first(float* p, int64_t n) const {
    reach(p, n);
    _mm512_mask_storeu_ps(p, mask(n), v);
  }
  void stream(float* p) const {
    reach(p, width);
    _mm512_stream_ps(p, v);
  }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
  static Vec div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
  // `then` where x <= 0, else `other`; NaN counts as greater.
  static Vec where_not_positive(Vec x, Vec then, Vec other) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_LE_OQ), other.v,
                                 then.v)};
  }
  // Whether some |x| exceeds the limit or is not a number.
  static bool any_beyond(Vec x, float limit) {
    return _mm512_cmp_ps_mask(_mm512_abs_ps(x.v), _mm512_set1_ps(limit), _CMP_NLE_UQ) != 0;
  }
  // x with its sign flipped where the lowest bit of `parity` is set.
  static Vec flip_sign(Vec x, Vec parity) {
    return {_mm512_castsi512_ps(_mm512_xor_si512(
        _mm512_castps_si512(x.v), _mm512_slli_epi32(_mm512_castps_si512(parity.v), 31)))};
  }
  // 2^k for integers k = -126 .. 127 that were added to 1.5 * 2^23 + 127.
  static Vec power_of_two(Vec shifted) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23))};
  }
  float sum() const { return _mm512_reduce_add_ps(v); }
  static __mmask16 mask(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
};

template <>
struct Vec<double> {
  static constexpr int64_t width = 8;
  __m512d v;
  static Vec broadcast(double x) { return {_mm512_set1_pd(x)}; }
  static Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static Vec load_first(const double* p, int64_t n) {
    reach(p, n);
    return {_mm512_maskz_loadu_pd(mask(n), p)};
  }
  void store(double* p) const { _mm512_storeu_pd(p, v); }
  void store_first(double* p, int64_t n) const {
    reach(p, n);
    _mm512_mask_storeu_pd(p, mask(n), v);
  }
  void stream(double* p) const {
    reach(p, width);
    _mm512_stream_pd(p, v);
  }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
  double sum() const { return _mm512_reduce_add_pd(v); }
  static __mmask8 mask(int64_t n) { return static_cast<__mmask8>((1u << n) - 1u); }
};

inline void stream_fence() { _mm_sfence(); }

#elif GINR_SIMD_IS_avx2

constexpr bool kWideRegisters = false;  // 16 vector registers

template <>
struct Vec<float> {
  static constexpr int64_t width = 8;
  __m256 v;
  static Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load_first(const float* p, int64_t n) {
    reach(p, n);
    return {_mm256_maskload_ps(p, mask(n))};
  }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store_first(float* p, int64_t n) const {
    reach(p, n);
    _mm256_maskstore_ps(p, mask(n), v);
  }
  void stream(float* p) const {
    reach(p, width);
    _mm256_stream_ps(p, v);
  }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
  static Vec div(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
  static Vec where_not_positive(Vec x, Vec then, Vec other) {
    return {_mm256_blendv_ps(other.v, then.v, _mm256_cmp_ps(x.v, _mm256_setzero_ps(), _CMP_LE_OQ))};
  }
  static bool any_beyond(Vec x, float limit) {
    const __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x.v);
    return _mm256_movemask_ps(_mm256_cmp_ps(size, _mm256_set1_ps(limit), _CMP_NLE_UQ)) != 0;
  }
  static Vec flip_sign(Vec x, Vec parity) {
    return {_mm256_castsi256_ps(_mm256_xor_si256(
        _mm256_castps_si256(x.v), _mm256_slli_epi32(_mm256_castps_si256(parity.v), 31)))};
  }
  static Vec power_of_two(Vec shifted) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(shifted.v), 23))};
  }
  float sum() const {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  static __m256i mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};

template <>
struct Vec<double> {
  static constexpr int64_t width = 4;
  __m256d v;
  static Vec broadcast(double x) { return {_mm256_set1_pd(x)}; }
  static Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static Vec load_first(const double* p, int64_t n) {
    reach(p, n);
    return {_mm256_maskload_pd(p, mask(n))};
  }
  void store(double* p) const { _mm256_storeu_pd(p, v); }
  void store_first(double* p, int64_t n) const {
    reach(p, n);
    _mm256_maskstore_pd(p, mask(n), v);
  }
  void stream(double* p) const {
    reach(p, width);
    _mm256_stream_pd(p, v);
  }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
  double sum() const {
    const __m128d s = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
  }
  static __m256i mask(int64_t n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  }
};

inline void stream_fence() { _mm_sfence(); }

#else

#if defined(__aarch64__)
constexpr bool kWideRegisters = true;
#else
constexpr bool kWideRegisters = false;
#endif

// The vector extension of GCC and Clang: 128 bits exist on every 64-bit processor.
template <class T>
struct Vec {
  typedef T Register __attribute__((vector_size(16)));
  typedef uint32_t Bits __attribute__((vector_size(16)));
  static constexpr int64_t width = 16 / sizeof(T);
  Register v;
  static Vec broadcast(T x) { return {x - Register{}}; }
  static Vec load(const T* p) {
    Vec result;
    std::memcpy(&result.v, p, sizeof(result.v));
    return result;
  }
  static Vec load_first(const T* p, int64_t n) {
    Vec result{Register{}};
    std::memcpy(&result.v, p, static_cast<size_t>(n) * sizeof(T));
    return result;
  }
  void store(T* p) const { std::memcpy(p, &v, sizeof(v)); }
  void store_first(T* p, int64_t n) const {
    std::memcpy(p, &v, static_cast<size_t>(n) * sizeof(T));
  }
  void stream(T* p) const { store(p); }
  static Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
  static Vec min(Vec a, Vec b) { return {a.v < b.v ? a.v : b.v}; }
  static Vec max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
  static Vec div(Vec a, Vec b) { return {a.v / b.v}; }
  static Vec where_not_positive(Vec x, Vec then, Vec other) {
    return {x.v <= Register{} ? then.v : other.v};
  }
  static bool any_beyond(Vec x, T limit) {
    bool beyond = false;
    for (int64_t i = 0; i < width; ++i) beyond |= !(x.v[i] <= limit && x.v[i] >= -limit);
    return beyond;
  }
  static Vec flip_sign(Vec x, Vec parity) {
    Vec result;
    result.v = (Register)((Bits)x.v ^ ((Bits)parity.v << 31));
    return result;
  }
  static Vec power_of_two(Vec shifted) {
    Vec result;
    result.v = (Register)((Bits)shifted.v << 23);
    return result;
  }
  T sum() const {
    T total = 0;
    for (int64_t i = 0; i < width; ++i) total += v[i];
    return total;
  }
};

inline void stream_fence() {}

#endif

template <class T>
inline Vec<T> operator+(Vec<T> a, Vec<T> b) { return {a.v + b.v}; }
template <class T>
inline Vec<T> operator-(Vec<T> a, Vec<T> b) { return {a.v - b.v}; }
template <class T>
inline Vec<T> operator*(Vec<T> a, Vec<T> b) { return {a.v * b.v}; }

// Keeps a loaded vector in a register: GCC otherwise loads it again for each of its uses, and a
// kernel that shares operands runs out of load ports.
template <class T>
inline Vec<T> held(Vec<T> x) {
#if GINR_SIMD_IS_avx2 || GINR_SIMD_IS_avx512
  __asm__("" : "+v"(x.v));
#endif
  return x;
}

}  // namespace GINR_SIMD
}  // namespace ginr
