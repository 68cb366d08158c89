// A field on a block of samples: forward, and backward from what the forward kept.
//
// Activations are [feature][kSamples] (layer.h). A block that is not full is padded with samples at 0
// whose gradients are 0.
//
// forward     a_0 = encoding(v),  a_{l+1} = f(W_l a_l + b_l)
// backward    d_l = f'(.) * dL/da_{l+1},  dL/dW_l += d_l a_l^T,  dL/db_l += d_l 1,
//             dL/da_l = W_l^T d_l
#pragma once

#include "field_mlp/grid_block.h"
#include "field_mlp/layer.h"

namespace ginr {
namespace GINR_SIMD {

// What the forward keeps of a block for its backward, cut out of one array.
struct Kept {
  const Field& field;
  float* base;
  // a_l, the input of layer l
  float* input(int64_t l) const {
    return base + (l == 0 ? 0 : field.input_dim() + (l - 1) * field.width) * kSamples;
  }
  // f' after layer l, for sines only
  float* slope(int64_t l) const {
    return input(field.layers()) + l * field.width * kSamples;
  }
};

// Where the samples of a block are.
struct Points {
  const float* coords;  // [d][kSamples]; or null: `count` points of a grid from number `first` on
  const FieldGrid* grid = nullptr;
  const float* tables = nullptr;
  int64_t first = 0, count = 0;
};

// a_1 of a grid's points, and f' after the first layer.
template <bool Slope>
inline void grid_layer(const Field& field, const Points& points, float* out, float* slope) {
  add_tables(*points.grid, field.width, points.tables, points.first, points.count, out);
  for (int64_t i = 0; i < field.width * kSamples; i += Floats::width) {
    const Floats sum = Floats::load(out + i);
    switch (field.activation) {
      case Activation::relu:
        activate_sum<Activation::relu, Slope>(sum, field.w0, out + i, nullptr);
        break;
      case Activation::sine:
        activate_sum<Activation::sine, Slope>(sum, field.w0, out + i, slope + i);
        break;
      default: break;
    }
  }
}

// a_0, from coordinates.
inline const float* first_input(const Field& field, const Frequencies& frequencies,
                                const float* coords, float* features) {
  if (field.frequencies == 0) return coords;
  encode(field, frequencies, coords, features);
  return features;
}

// Values [out_dim][kSamples]. Scratch: forward_floats(field).
inline void forward_block(const Field& field, const Frequencies& frequencies,
                          const FieldWeights& weights, const Points& points, float* out,
                          float* scratch) {
  uint16_t* room = reinterpret_cast<uint16_t*>(scratch);
  float* features = scratch + room_floats(field);
  float* here = features + field.input_dim() * kSamples;
  float* there = here + field.width * kSamples;
  const bool grid = points.coords == nullptr;
  const float* in = grid ? nullptr : first_input(field, frequencies, points.coords, features);
  for (int64_t l = 0; l < field.layers(); ++l) {
    float* to = l + 1 == field.layers() ? out : here;
    if (l == 0 && grid) {
      grid_layer<false>(field, points, to, nullptr);
    } else {
      run_layer<false>(field, weights, l, in, to, nullptr, room);
    }
    in = here;
    here = there;
    there = const_cast<float*>(in);
  }
}

// The same, keeping what the backward needs in kept_floats(field) numbers; `out` may be changed
// afterwards, `out_slope` has f' after the last layer. Scratch: room_floats(field).
inline void forward_block_keeping(const Field& field, const Frequencies& frequencies,
                                  const FieldWeights& weights, const Points& points, float* out,
                                  float* out_slope, const Kept& kept, float* scratch) {
  uint16_t* room = reinterpret_cast<uint16_t*>(scratch);
  const bool grid = points.coords == nullptr;
  const float* in =
      grid ? nullptr : first_input(field, frequencies, points.coords, kept.input(0));
  if (field.frequencies == 0) {
    __builtin_memcpy(kept.input(0), points.coords,
                     static_cast<size_t>(field.coord_dim * kSamples) * sizeof(float));
  }
  for (int64_t l = 0; l < field.layers(); ++l) {
    const bool last = l + 1 == field.layers();
    float* to = last ? out : kept.input(l + 1);
    float* slope = last ? out_slope : field.activation == Activation::sine ? kept.slope(l) : nullptr;
    if (l == 0 && grid) {
      grid_layer<true>(field, points, to, slope);
    } else {
      run_layer<true>(field, weights, l, in, to, slope, room);
    }
    in = to;
  }
}

// d = f' * grad after a layer, in place.
inline void times_slope(int64_t rows, const float* slope, float* grad) {
  for (int64_t i = 0; i < rows * kSamples; i += Floats::width) {
    (Floats::load(grad + i) * Floats::load(slope + i)).store(grad + i);
  }
}
inline void where_positive(int64_t rows, const float* value, float* grad) {
  for (int64_t i = 0; i < rows * kSamples; i += Floats::width) {
    const Floats g = Floats::load(grad + i);
    Floats::where_not_positive(Floats::load(value + i), all(0.0f), g).store(grad + i);
  }
}
inline void through_activation(const Field& field, const Kept& kept, const float* out_slope,
                               int64_t l, float* grad) {
  const Activation f = field.activation_after(l);
  if (f == Activation::none) return;
  if (l + 1 == field.layers()) {
    times_slope(field.rows(l), out_slope, grad);
  } else if (f == Activation::sine) {
    times_slope(field.rows(l), kept.slope(l), grad);
  } else {
    where_positive(field.rows(l), kept.input(l + 1), grad);
  }
}

// Adds a block's share to grad_weights (null: not wanted) and writes grad_coords [d][kSamples]
// (null: not wanted). Of a grid's points, the gradient of the first layer's weights is added to
// `table_grads` instead. `grad` [out_dim][kSamples] is overwritten.
// Scratch: backward_floats(field).
inline void backward_block(const Field& field, const Frequencies& frequencies,
                           const FieldWeights& weights, const Points& points,
                           const float* out_slope, const Kept& kept, float* grad,
                           float* grad_weights, float* table_grads, float* grad_coords,
                           float* scratch) {
  const int64_t widest = widest_of(field);
  uint16_t* room = reinterpret_cast<uint16_t*>(scratch);
  float* turned = scratch + room_floats(field);  // a_l transposed: [kSamples][columns]
  float* here = turned + widest * kSamples;
  float* there = here + widest * kSamples;
  float* d = grad;
  for (int64_t l = field.layers() - 1; l >= 0; --l) {
    const int64_t rows = field.rows(l), columns = field.columns(l);
    through_activation(field, kept, out_slope, l, d);
    if (grad_weights != nullptr) {
      float* into = grad_weights + field.weight(l);
      if (field.bias) add_row_sums(d, rows, grad_weights + field.bias_at(l));
      if (l == 0 && points.coords == nullptr) {
        add_to_tables(*points.grid, field.width, d, points.first, points.count, table_grads);
        return;
      }
#if defined(GINR_SIMD_HAS_TILES)
      if (weights.split != nullptr && has_split(field, l)) {
        add_outer_of_tiles(d, rows, kept.input(l), columns, room, into);
      } else
#endif
      {
        add_outer(d, rows, kept.input(l), columns, turned, into, columns);
      }
    }
    if (l == 0 && grad_coords == nullptr) return;
    float* to = l == 0 && field.frequencies == 0 ? grad_coords : here;
    product(backward_product(field, weights, l, d, room), columns, kSamples,
            [](int64_t) { return all(0.0f); },
            [=](int64_t r, int64_t c, int64_t, Floats sum) { sum.store(to + r * kSamples + c); });
    d = here;
    here = there;
    there = d;
  }
  if (field.frequencies > 0) encode_backward(field, frequencies, kept.input(0), d, grad_coords);
}

}  // namespace GINR_SIMD
}  // namespace ginr
