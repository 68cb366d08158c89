// Sine and cosine for the CUDA kernels.
//
// A multiprocessor's special-function units give 16 sines a cycle, its other units 128
// multiply-adds: the kernels let most sines go the one way and some (Operand::kPolynomials of
// eight) the other. Both start from a phase reduced in float32 with pi in two parts. Absolute
// error: 2e-7 by polynomial, 6e-7 by the special-function unit.
#pragma once

#include "common/device.cuh"

namespace ginr {
namespace device {

constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
constexpr float kReduceLimit = 5e4f;   // beyond, x / pi in float may round to the wrong integer

// x - k pi; the lowest bit of `shifted` is that of k.
GINR_DEVICE float reduce_by_pi(float x, float& shifted) {
  shifted = fmaf(x, 0.31830988618379067f, kRound);
  const float k = kRound - shifted;
  return fmaf(k, -8.742277657347586e-08f, fmaf(k, 3.1415927410125732f, x));
}

GINR_DEVICE float reduce_by_turn(float x) {
  const float k = kRound - fmaf(x, 0.15915494309189535f, kRound);
  return fmaf(k, -1.7484555314695172e-07f, fmaf(k, 6.2831854820251465f, x));
}

GINR_DEVICE float flip_sign(float x, float shifted) {
  return __uint_as_float(__float_as_uint(x) ^ (__float_as_uint(shifted) << 31));
}

// The minimax polynomials of common/vector_math.h, |r| <= pi/2.
GINR_DEVICE float sine_polynomial(float r, float square) {
  float p = fmaf(square, 2.600024345156271e-06f, -0.00019806601630989462f);
  p = fmaf(p, square, 0.008333017118275166f);
  p = fmaf(p, square, -0.16666656732559204f);
  return fmaf(p * square, r, r);
}

GINR_DEVICE float cosine_polynomial(float square) {
  float p = fmaf(square, -2.6193549729214283e-07f, 2.4769291485426947e-05f);
  p = fmaf(p, square, -0.0013888569083064795f);
  p = fmaf(p, square, 0.041666656732559204f);
  p = fmaf(p, square, -0.5f);
  return fmaf(p, square, 1.0f);
}

// A phase too large for the reductions above, brought to a turn or so. Beyond 1e8, where
// neighbouring float32 phases are more than a turn apart: 0, and NaN where it is not finite.
GINR_DEVICE float fold(float x) {
  const float k = -rintf(x * 0.15915494309189535f);
  const float r = fmaf(k, -1.7484555314695172e-07f, fmaf(k, 6.2831854820251465f, x));
  return fabsf(x) <= 1e8f ? r : 0.0f * x;
}

template <int Count>
GINR_DEVICE void fold_large(float (&x)[Count]) {
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < Count; ++i) largest = fmaxf(largest, fabsf(x[i]));
  if (__builtin_expect(largest <= kReduceLimit, 1)) return;
#pragma unroll
  for (int i = 0; i < Count; ++i) x[i] = fold(x[i]);
}

// x -> sin x, and cos x if wanted; of every eight, the first Polynomials by polynomial.
template <int Polynomials, bool Cosine>
GINR_DEVICE void sines(float (&x)[8], float (&cosine)[8]) {
  fold_large(x);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < Polynomials) {
      float shifted;
      const float r = reduce_by_pi(x[i], shifted);
      const float square = r * r;
      x[i] = flip_sign(sine_polynomial(r, square), shifted);
      if (Cosine) cosine[i] = flip_sign(cosine_polynomial(square), shifted);
    } else {
      const float r = reduce_by_turn(x[i]);
      x[i] = __sinf(r);
      if (Cosine) cosine[i] = __cosf(r);
    }
  }
}

// Sine and cosine of v * (high + low), whose rounding is carried along.
GINR_DEVICE void sine_cosine_of_product(float v, float high, float low, float& s, float& c) {
  const float x[1] = {v * high};
  float folded[1] = {x[0]};
  fold_large(folded);
  const float rest = fmaf(v, low, fmaf(v, high, -x[0]));
  float shifted;
  const float r = reduce_by_pi(folded[0], shifted) + rest;
  const float square = r * r;
  s = flip_sign(sine_polynomial(r, square), shifted);
  c = flip_sign(cosine_polynomial(square), shifted);
}

}  // namespace device
}  // namespace ginr
