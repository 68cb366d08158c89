// The gradient of a field's weight gradient, on a block of samples.
//
// With G(W) = dL/dW for dL/dy = g, and U of the shape of W, the sum <G, U> is <g, y'>, where y' is
// the derivative of y along U:
//
//   p'_l = U_l a_l + W_l a'_l,  a'_{l+1} = f'(p_l) p'_l,  a'_0 = 0,  y' = a'_L
//
// Its gradient in g is y'; its gradient in W comes backward through both chains. With A and a the
// adjoints of a' and of the activations themselves, A_L = g and a_L = 0:
//
//   P = f' A,  p = f' a + f'' p' A
//   d<G,U>/dW_l = p a_l^T + P a'_l^T,   A <- W_l^T P,   a <- W_l^T p + U_l^T P
#pragma once

#include "field_mlp/block.h"

namespace ginr {
namespace GINR_SIMD {

// p'_l and a'_{l+1} of every layer.
struct Tangents {
  const Field& field;
  float* base;
  float* before(int64_t l) const { return base + 2 * l * widest_of(field) * kSamples; }
  float* after(int64_t l) const { return before(l) + widest_of(field) * kSamples; }
};

// out = A in, or out += A in; A (rows, columns) as stored, or transposed.
template <bool Add>
inline void times(const float* matrix, int64_t rows, int64_t columns, bool transposed,
                  const float* in, const float* bias, float* out) {
  const Product job = transposed ? Product{matrix, 1, rows, in, kSamples, columns}
                                 : Product{matrix, columns, 1, in, kSamples, columns};
  product(
      job, rows, kSamples, [=](int64_t r) { return all(bias == nullptr ? 0.0f : bias[r]); },
      [=](int64_t r, int64_t c, int64_t, Floats sum) {
        float* to = out + r * kSamples + c;
        (Add ? Floats::load(to) + sum : sum).store(to);
      });
}

// f' after layer l at element i.
inline Floats slope_at(const Field& field, const Kept& kept, const float* out_slope, int64_t l,
                       int64_t i) {
  switch (field.activation_after(l)) {
    case Activation::none: return all(1.0f);
    case Activation::sine:
      return Floats::load((l + 1 == field.layers() ? out_slope : kept.slope(l)) + i);
    default:
      if (l + 1 == field.layers()) return Floats::load(out_slope + i);
      return Floats::where_not_positive(Floats::load(kept.input(l + 1) + i), all(0.0f), all(1.0f));
  }
}

// y' [out_dim][kSamples] from what forward_block_keeping kept; fills the tangents.
inline void tangent_block(const Field& field, const float* weights, const float* along,
                          const float* out_slope, const Kept& kept, const Tangents& tangents) {
  for (int64_t l = 0; l < field.layers(); ++l) {
    const int64_t rows = field.rows(l), columns = field.columns(l);
    float* before = tangents.before(l);
    times<false>(along + field.weight(l), rows, columns, false, kept.input(l),
                 bias_of(field, along, l), before);
    if (l > 0) {
      times<true>(weights + field.weight(l), rows, columns, false, tangents.after(l - 1), nullptr,
                  before);
    }
    for (int64_t i = 0; i < rows * kSamples; i += Floats::width) {
      const Floats slope = slope_at(field, kept, out_slope, l, i);
      (slope * Floats::load(before + i)).store(tangents.after(l) + i);
    }
  }
}

// Adds d<G,U>/dW of the block to grad_weights. `grad` [out_dim][kSamples] is overwritten.
// Scratch: 5 * widest_of(field) * kSamples.
inline void second_block(const Field& field, const float* weights, const float* along,
                         const float* out, const float* out_slope, const Kept& kept,
                         const Tangents& tangents, float* grad, float* grad_weights,
                         float* scratch) {
  const int64_t step = widest_of(field) * kSamples;
  float *turned = scratch, *first = scratch + step, *second = scratch + 2 * step;
  float *next_first = scratch + 3 * step, *next_second = scratch + 4 * step;
  const int64_t last = field.layers() - 1;
  __builtin_memcpy(first, grad, static_cast<size_t>(field.out_dim * kSamples) * sizeof(float));
  __builtin_memset(second, 0, static_cast<size_t>(field.out_dim * kSamples) * sizeof(float));
  for (int64_t l = last; l >= 0; --l) {
    const int64_t rows = field.rows(l), columns = field.columns(l);
    const float* value = l == last ? out : kept.input(l + 1);
    const bool curved = field.activation_after(l) == Activation::sine;
    for (int64_t i = 0; i < rows * kSamples; i += Floats::width) {
      const Floats slope = slope_at(field, kept, out_slope, l, i);
      const Floats upper = Floats::load(first + i);
      Floats lower = slope * Floats::load(second + i);
      if (curved) {
        const Floats bend = Floats::load(value + i) * Floats::load(tangents.before(l) + i);
        lower = Floats::fma(bend * upper, all(-field.w0 * field.w0), lower);
      }
      lower.store(second + i);
      (slope * upper).store(first + i);
    }
    float* into = grad_weights + field.weight(l);
    add_outer(second, rows, kept.input(l), columns, turned, into, columns);
    if (l > 0) add_outer(first, rows, tangents.after(l - 1), columns, turned, into, columns);
    if (field.bias) add_row_sums(second, rows, grad_weights + field.bias_at(l));
    if (l == 0) return;
    times<false>(weights + field.weight(l), columns, rows, true, second, nullptr, next_second);
    times<true>(along + field.weight(l), columns, rows, true, first, nullptr, next_second);
    times<false>(weights + field.weight(l), columns, rows, true, first, nullptr, next_first);
    float* swapped = first;
    first = next_first;
    next_first = swapped;
    swapped = second;
    second = next_second;
    next_second = swapped;
  }
}

}  // namespace GINR_SIMD
}  // namespace ginr
