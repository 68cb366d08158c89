// The parts of a field on a block of samples: a layer, its gradients, the encoding.
//
// Samples lie along the vectors: an array of activations is [feature][kSamples]. Weights are
// broadcast from the packed row as they are.
#pragma once

#include "common/field_layout.h"
#include "common/vector_math.h"
#include "field_mlp/job.h"
#include "field_mlp/product.h"

namespace ginr {
namespace GINR_SIMD {

constexpr int64_t kSamples = kFieldSamples;

// f of a sum; `slope` gets f' if wanted (of ReLU only if not null).
template <Activation F, bool Slope>
inline void activate_sum(Floats sum, float w0, float* to, float* slope) {
  if (F == Activation::relu) {
    Floats::max(all(0.0f), sum).store(to);
    if (Slope && slope != nullptr) {
      Floats::where_not_positive(sum, all(0.0f), all(1.0f)).store(slope);
    }
  } else if (F == Activation::sine && Slope) {
    Floats s, cosine;
    sine_cosine(sum * all(w0), s, cosine);
    s.store(to);
    (cosine * all(w0)).store(slope);
  } else if (F == Activation::sine) {
    sine(sum * all(w0)).store(to);
  } else {
    sum.store(to);
  }
}

// One layer: out = f(W in + b).
template <Activation F, bool Slope>
inline void layer(const Product& job, const float* bias, float w0, int64_t rows, float* out,
                  float* slope) {
  product(
      job, rows, kSamples,
      [=](int64_t r) { return all(bias == nullptr ? 0.0f : bias[r]); },
      [=](int64_t r, int64_t c, int64_t, Floats sum) {
        const int64_t at = r * kSamples + c;
        activate_sum<F, Slope>(sum, w0, out + at, slope == nullptr ? nullptr : slope + at);
      });
}

// The features of a block of coordinates [d][kSamples]. Phases are formed from frequencies in two
// parts and with the rounding error of their product: a phase of a thousand radians keeps 1e-7.
inline void encode(const Field& field, const Frequencies& frequencies, const float* coords,
                   float* features) {
  const int64_t n = field.frequencies, half = field.coord_dim * n;
  for (int64_t i = 0; i < field.coord_dim; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const Floats high = all(frequencies.high[j]), low = all(frequencies.low[j]);
      float* cosines = features + (i * n + j) * kSamples;
      for (int64_t c = 0; c < kSamples; c += Floats::width) {
        const Floats v = Floats::load(coords + i * kSamples + c);
        Floats s, cosine;
        sine_cosine_of_product(v, high, low, s, cosine);
        cosine.store(cosines + c);
        s.store(cosines + half * kSamples + c);
      }
    }
  }
}

// W_l in, and W_l^T in; `room` is for `in` as the tiles take it.
inline Product forward_product(const Field& field, const FieldWeights& weights, int64_t l,
                               const float* in, uint16_t* room) {
  const uint16_t* split = weights.split == nullptr || !has_split(field, l)
                              ? nullptr
                              : weights.split + split_weight(field, l);
  const int64_t columns = field.columns(l);
  return {weights.row + field.weight(l), columns, 1, in, kSamples, columns, split, room};
}
inline Product backward_product(const Field& field, const FieldWeights& weights, int64_t l,
                                const float* in, uint16_t* room) {
  const uint16_t* split = weights.split == nullptr || !has_split(field, l)
                              ? nullptr
                              : weights.split + split_transpose(field, l);
  return {weights.row + field.weight(l), 1, field.columns(l), in, kSamples, field.rows(l), split,
          room};
}

inline const float* bias_of(const Field& field, const float* weights, int64_t l) {
  return field.bias ? weights + field.bias_at(l) : nullptr;
}

template <bool Slope>
inline void run_layer(const Field& field, const FieldWeights& weights, int64_t l, const float* in,
                      float* out, float* slope, uint16_t* room) {
  const Product job = forward_product(field, weights, l, in, room);
  const float* bias = bias_of(field, weights.row, l);
  switch (field.activation_after(l)) {
    case Activation::relu:
      layer<Activation::relu, Slope>(job, bias, field.w0, field.rows(l), out, slope);
      break;
    case Activation::sine:
      layer<Activation::sine, Slope>(job, bias, field.w0, field.rows(l), out, slope);
      break;
    default:
      layer<Activation::none, Slope>(job, bias, field.w0, field.rows(l), out, slope);
  }
}

// x[rows][kSamples] as t[kSamples][rows], rows padded to whole vectors in `stride`.
inline void transpose(const float* x, int64_t rows, float* t, int64_t stride) {
  // Row tiles of one cache line: writes go to kSamples lines that stay in the first-level cache.
  for (int64_t r0 = 0; r0 < rows; r0 += 16) {
    const int64_t end = r0 + 16 < rows ? r0 + 16 : rows;
    for (int64_t s = 0; s < kSamples; ++s) {
      for (int64_t r = r0; r < end; ++r) t[s * stride + r] = x[r * kSamples + s];
    }
  }
}

// into (rows, columns), `stride` apart, += d a^T, with room for a^T in `turned`.
inline void add_outer(const float* d, int64_t rows, const float* a, int64_t columns, float* turned,
                      float* into, int64_t stride) {
  transpose(a, columns, turned, columns);
  product(
      {d, kSamples, 1, turned, columns, kSamples}, rows, columns,
      [](int64_t) { return all(0.0f); },
      [=](int64_t r, int64_t c, int64_t n, Floats sum) {
        float* to = into + r * stride + c;
        if (n == Floats::width) {
          (Floats::load(to) + sum).store(to);
        } else {
          (Floats::load_first(to, n) + sum).store_first(to, n);
        }
      });
}

#if defined(GINR_SIMD_HAS_TILES)
// The same on tiles, with room for both operands as they take them.
inline void add_outer_of_tiles(const float* d, int64_t rows, const float* a, int64_t columns,
                               uint16_t* room, float* into) {
  uint16_t* of_d = room + split_size(columns, kSamples);
  tiles::pack<kFieldParts, true>({a, kSamples, 1}, columns, kSamples, room);
  for (int64_t r0 = 0; r0 < rows; r0 += kPanelRows) {
    const int64_t count = rows - r0 < kPanelRows ? rows - r0 : kPanelRows;
    tiles::pack<kFieldParts, false>({d + r0 * kSamples, kSamples, 1}, count, kSamples, of_d);
    tiles::multiply<kFieldParts>(of_d, count, room, columns, kSamples,
                                 [=](int64_t r, int64_t c, int64_t n, Floats sum) {
                                   float* to = into + (r0 + r) * columns + c;
                                   if (n == Floats::width) {
                                     (Floats::load(to) + sum).store(to);
                                   } else {
                                     (Floats::load_first(to, n) + sum).store_first(to, n);
                                   }
                                 });
  }
}
#endif

inline void add_row_sums(const float* d, int64_t rows, float* into) {
  for (int64_t r = 0; r < rows; ++r) {
    Floats total = Floats::load(d + r * kSamples);
    for (int64_t c = Floats::width; c < kSamples; c += Floats::width) {
      total = total + Floats::load(d + r * kSamples + c);
    }
    into[r] += total.sum();
  }
}

// dL/dv from dL/d(features).
inline void encode_backward(const Field& field, const Frequencies& frequencies,
                            const float* features, const float* grad, float* grad_coords) {
  const int64_t n = field.frequencies, half = field.coord_dim * n * kSamples;
  for (int64_t i = 0; i < field.coord_dim; ++i) {
    for (int64_t c = 0; c < kSamples; c += Floats::width) {
      Floats total = all(0.0f);
      for (int64_t j = 0; j < n; ++j) {
        const int64_t at = (i * n + j) * kSamples + c;
        const Floats slope = Floats::load(features + at) * Floats::load(grad + half + at) -
                             Floats::load(features + half + at) * Floats::load(grad + at);
        total = Floats::fma(all(frequencies.high[j]), slope, total);
      }
      total.store(grad_coords + i * kSamples + c);
    }
  }
}

// count <= kSamples rows (d) at `coords` as [d][kSamples], padded with 0.
inline void gather(const float* coords, int64_t dim, int64_t count, float* block) {
  for (int64_t i = 0; i < dim; ++i) {
    float* row = block + i * kSamples;
    for (int64_t s = 0; s < count; ++s) row[s] = coords[s * dim + i];
    for (int64_t s = count; s < kSamples; ++s) row[s] = 0.0f;
  }
}

// [d][kSamples] to count rows (d).
inline void scatter(const float* block, int64_t dim, int64_t count, float* rows) {
  for (int64_t i = 0; i < dim; ++i) {
    for (int64_t s = 0; s < count; ++s) rows[s * dim + i] = block[i * kSamples + s];
  }
}

}  // namespace GINR_SIMD
}  // namespace ginr
