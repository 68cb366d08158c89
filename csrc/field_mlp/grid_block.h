// The first layer of a field on a block of a grid's points; see grid.h.
#pragma once

#include "field_mlp/grid.h"
#include "field_mlp/layer.h"

namespace ginr {
namespace GINR_SIMD {

// Calls body(s, n, at) for runs of the samples from `first` on, numbered from 0: of samples s to
// s + n, row r of axis a's table is at at[a] + r * kSamples, and for the last axis the n from there.
template <class Body>
inline void over_runs(const FieldGrid& grid, int64_t width, int64_t first, int64_t count,
                      const Body& body) {
  const int64_t last = grid.dims - 1;
  for (int64_t s = 0; s < count;) {
    int64_t index[kMostGridDims], at[kMostGridDims];
    int64_t rest = first + s, block = 0;
    for (int64_t a = last; a >= 0; --a) {
      index[a] = rest % grid.shape[a];
      rest /= grid.shape[a];
    }
    for (int64_t a = 0; a <= last; ++a) {
      at[a] = (block + index[a] / kSamples) * width * kSamples + index[a] % kSamples;
      block += axis_blocks(grid, a);
    }
    int64_t n = count - s;
    if (n > grid.shape[last] - index[last]) n = grid.shape[last] - index[last];
    if (n > kSamples - index[last] % kSamples) n = kSamples - index[last] % kSamples;
    body(s, n, at);
    s += n;
  }
}

// W_0 a_0 + b_0 of `count` samples as [width][kSamples]; of the others 0.
inline void add_tables(const FieldGrid& grid, int64_t width, const float* tables, int64_t first,
                       int64_t count, float* out) {
  for (int64_t i = 0; count < kSamples && i < width * kSamples; ++i) out[i] = 0.0f;
  over_runs(grid, width, first, count, [&](int64_t s, int64_t n, const int64_t* at) {
    const int64_t last = grid.dims - 1;
    for (int64_t r = 0; r < width; ++r) {
      float base = tables[at[0] + r * kSamples];
      for (int64_t a = 1; a < last; ++a) base += tables[at[a] + r * kSamples];
      const float* from = tables + at[last] + r * kSamples;
      float* to = out + r * kSamples + s;
      for (int64_t k = 0; k < n; ++k) to[k] = base + from[k];
    }
  });
}

// The reverse: adds what arrives at `count` samples, d [width][kSamples], to the tables.
inline void add_to_tables(const FieldGrid& grid, int64_t width, const float* d, int64_t first,
                          int64_t count, float* tables) {
  over_runs(grid, width, first, count, [&](int64_t s, int64_t n, const int64_t* at) {
    const int64_t last = grid.dims - 1;
    for (int64_t r = 0; r < width; ++r) {
      const float* from = d + r * kSamples + s;
      float* to = tables + at[last] + r * kSamples;
      Floats sums = all(0.0f);
      int64_t k = 0;
      for (; k + Floats::width <= n; k += Floats::width) {
        const Floats some = Floats::load(from + k);
        (Floats::load(to + k) + some).store(to + k);
        sums = sums + some;
      }
      float total = sums.sum();
      for (; k < n; ++k) {
        to[k] += from[k];
        total += from[k];
      }
      for (int64_t a = 0; a < last; ++a) tables[at[a] + r * kSamples] += total;
    }
  });
}

// [cos][sin] of some places, [2 * frequencies][kSamples]. Scratch: kSamples.
inline void encode_places(const Field& field, const Frequencies& frequencies,
                          const TablePlaces& places, float* features, float* scratch) {
  Field line = field;
  line.coord_dim = 1;
  gather(places.positions, 1, places.count, scratch);
  encode(line, frequencies, scratch, features);
}

// A block of a table, [width][kSamples]; the first axis has the bias in it.
// Scratch: table_scratch(field).
inline void table_block(const Field& field, const Frequencies& frequencies, const float* weights,
                        const TablePlaces& places, float* table, float* scratch) {
  const int64_t n = field.frequencies, columns = field.columns(0);
  float* features = scratch + kSamples;
  encode_places(field, frequencies, places, features, scratch);
  const float* bias = places.axis == 0 && field.bias ? weights + field.bias_at(0) : nullptr;
  const float* cosines = weights + field.weight(0) + places.axis * n;
  product(
      {cosines, columns, 1, features, kSamples, n}, field.width, kSamples,
      [=](int64_t r) { return all(bias == nullptr ? 0.0f : bias[r]); },
      [=](int64_t r, int64_t c, int64_t, Floats sum) { sum.store(table + r * kSamples + c); });
  product(
      {cosines + field.coord_dim * n, columns, 1, features + n * kSamples, kSamples, n},
      field.width, kSamples, [](int64_t) { return all(0.0f); },
      [=](int64_t r, int64_t c, int64_t, Floats sum) {
        float* to = table + r * kSamples + c;
        (Floats::load(to) + sum).store(to);
      });
}

// Adds to dL/dW_0 what a block of the tables' gradients says. Scratch: table_scratch(field).
inline void table_block_backward(const Field& field, const Frequencies& frequencies,
                                 const TablePlaces& places, const float* table_grads,
                                 float* grad_weights, float* scratch) {
  const int64_t n = field.frequencies, columns = field.columns(0);
  float *features = scratch + kSamples, *turned = features + 2 * n * kSamples;
  encode_places(field, frequencies, places, features, scratch);
  float* cosines = grad_weights + field.weight(0) + places.axis * n;
  add_outer(table_grads, field.width, features, n, turned, cosines, columns);
  add_outer(table_grads, field.width, features + n * kSamples, n, turned,
            cosines + field.coord_dim * n, columns);
}

}  // namespace GINR_SIMD
}  // namespace ginr
