// Sine, cosine and exponential of Vec<float>, accurate for every float.
//
// Largest absolute error of sine and cosine: 2e-7; largest relative error of exp where its result
// is a normal number: 1e-7. Infinities and NaN give what the C library gives. The bounds are tested
// over the whole range of float in tests/test_vector_math.py.
#pragma once

#include "common/simd.h"

namespace ginr {
namespace GINR_SIMD {

using Floats = Vec<float>;

inline Floats all(float x) { return Floats::broadcast(x); }

// Adding this to |k| < 2^22 rounds it to an integer, which the low bits of the sum then hold.
constexpr float kRound = 12582912.0f;  // 1.5 * 2^23

// pi in parts. With a fused multiply-add the first product is not rounded, so two parts carry the
// reduction as far as kRound does; without one the leading parts need trailing zeros.
#if GINR_SIMD_IS_avx2 || GINR_SIMD_IS_avx512 || defined(__aarch64__)
constexpr float kPi[] = {3.1415927410125732f, -8.742277657347586e-08f};
constexpr float kReduceLimit = 5e4f;  // beyond, x / pi in float may round to the wrong integer
#else
constexpr float kPi[] = {3.140625f, 9.67502593994140625e-4f, 1.509957990978376432e-7f};
constexpr float kReduceLimit = 2.5e4f;
#endif

// x = k pi + r with |r| <= pi/2; the lowest bit of `parity` is that of k.
inline Floats reduce_by_pi(Floats x, Floats& parity) {
  parity = Floats::fma(x, all(0.31830988618379067f), all(kRound));
  const Floats k = all(kRound) - parity;
  Floats r = Floats::fma(k, all(kPi[0]), x);
  for (size_t part = 1; part < sizeof(kPi) / sizeof(kPi[0]); ++part) {
    r = Floats::fma(k, all(kPi[part]), r);
  }
  return r;
}

// sin r, |r| <= pi/2: r + r^3 P(r^2), minimax, error below 5e-9 before rounding.
inline Floats sine_polynomial(Floats r, Floats square) {
  Floats p = Floats::fma(square, all(2.600024345156271e-06f), all(-0.00019806601630989462f));
  p = Floats::fma(p, square, all(0.008333017118275166f));
  p = Floats::fma(p, square, all(-0.16666656732559204f));
  return Floats::fma(p * square, r, r);
}

// cos r, |r| <= pi/2: 1 - r^2/2 + r^4 P(r^2), minimax, error below 4e-10 before rounding.
inline Floats cosine_polynomial(Floats square) {
  Floats p = Floats::fma(square, all(-2.6193549729214283e-07f), all(2.4769291485426947e-05f));
  p = Floats::fma(p, square, all(-0.0013888569083064795f));
  p = Floats::fma(p, square, all(0.041666656732559204f));
  p = Floats::fma(p, square, all(-0.5f));
  return Floats::fma(p, square, all(1.0f));
}

// Lane by lane in double: for phases too large to reduce, infinities and NaN.
__attribute__((noinline)) inline void sine_cosine_slow(Floats x, Floats& sine, Floats& cosine) {
  float in[Floats::width], s[Floats::width], c[Floats::width];
  x.store(in);
  for (int64_t i = 0; i < Floats::width; ++i) {
    s[i] = static_cast<float>(__builtin_sin(static_cast<double>(in[i])));
    c[i] = static_cast<float>(__builtin_cos(static_cast<double>(in[i])));
  }
  sine = Floats::load(s);
  cosine = Floats::load(c);
}

inline Floats sine(Floats x) {
  if (__builtin_expect(Floats::any_beyond(x, kReduceLimit), 0)) {
    Floats s, c;
    sine_cosine_slow(x, s, c);
    return s;
  }
  Floats parity;
  const Floats r = reduce_by_pi(x, parity);
  return Floats::flip_sign(sine_polynomial(r, r * r), parity);
}

inline void sine_cosine(Floats x, Floats& s, Floats& c) {
  if (__builtin_expect(Floats::any_beyond(x, kReduceLimit), 0)) {
    sine_cosine_slow(x, s, c);
    return;
  }
  Floats parity;
  const Floats r = reduce_by_pi(x, parity);
  const Floats square = r * r;
  s = Floats::flip_sign(sine_polynomial(r, square), parity);
  c = Floats::flip_sign(cosine_polynomial(square), parity);
}

// Sine and cosine of v * (high + low), whose rounding is carried along where products can be fused.
inline void sine_cosine_of_product(Floats v, Floats high, Floats low, Floats& s, Floats& c) {
  const Floats x = v * high;
  if (__builtin_expect(Floats::any_beyond(x, kReduceLimit), 0)) {
    sine_cosine_slow(x, s, c);
    return;
  }
  const Floats rest = Floats::fma(v, low, Floats::fma(v, high, all(0.0f) - x));
  Floats parity;
  const Floats r = reduce_by_pi(x, parity) + rest;
  const Floats square = r * r;
  s = Floats::flip_sign(sine_polynomial(r, square), parity);
  c = Floats::flip_sign(cosine_polynomial(square), parity);
}

// e^x: x = k ln 2 + r, 2^k (1 + r + r^2 P(r)). Two factors for 2^k, so that k = 128 overflows and
// not before.
inline Floats exponential(Floats x) {
  // Comparisons with NaN choose the second operand: NaN stays.
  x = Floats::max(all(-104.0f), Floats::min(all(89.0f), x));
  const Floats shifted = Floats::fma(x, all(1.4426950408889634f), all(kRound));
  const Floats k = shifted - all(kRound);
  Floats r = Floats::fma(k, all(-0.693359375f), x);
  r = Floats::fma(k, all(2.12194440e-4f), r);
  Floats p = Floats::fma(r, all(0.001395049155689776f), all(0.008368889801204205f));
  p = Floats::fma(p, r, all(0.04166620597243309f));
  p = Floats::fma(p, r, all(0.166665181517601f));
  p = Floats::fma(p, r, all(0.5f));
  p = Floats::fma(p, r * r, r) + all(1.0f);
  const Floats half = Floats::fma(k, all(0.5f), all(kRound)) - all(kRound);
  const Floats first = Floats::power_of_two(half + all(kRound + 127.0f));
  const Floats second = Floats::power_of_two((k - half) + all(kRound + 127.0f));
  return p * first * second;
}

}  // namespace GINR_SIMD
}  // namespace ginr
