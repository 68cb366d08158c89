// What a task of field_mlp gets, and how much scratch memory it needs.
#pragma once

#include <cstdint>

#include "common/cpu_path.h"
#include "common/field_layout.h"
#include "field_mlp/split_weights.h"

namespace ginr {

// Samples of a block. With the weights and two arrays of activations of a width-64 field it stays
// in the first-level cache; four vectors of AVX-512.
constexpr int64_t kFieldSamples = 64;

// Angular frequencies of the encoding, as sums of two floats.
struct Frequencies {
  const float* high;
  const float* low;
};

// Points on a grid, the last axis fastest: its positions, axis after axis. dims 0: there is none.
constexpr int64_t kMostGridDims = 4;
struct FieldGrid {
  int64_t dims;
  int64_t shape[kMostGridDims];
  const float* axes;
};

// An instance's weights: the packed row, and what the path amx has of it besides; null: nothing.
struct FieldWeights {
  const float* row;
  const uint16_t* split;
};

GINR_INLINE int64_t widest_of(const Field& field) {
  int64_t widest = field.width > field.input_dim() ? field.width : field.input_dim();
  return widest > field.out_dim ? widest : field.out_dim;
}

// Scratch of forward_block, of what forward_block_keeping keeps, and of backward_block, in floats;
// both blocks' begins with the room for packed activations.
GINR_INLINE int64_t room_floats(const Field& field) {
  return split_room(widest_of(field), kFieldSamples);
}
GINR_INLINE int64_t forward_floats(const Field& field) {
  return room_floats(field) + (field.input_dim() + 2 * field.width) * kFieldSamples;
}
GINR_INLINE int64_t kept_floats(const Field& field) {
  const int64_t hidden = field.layers() - 1;
  const bool sine = field.activation == Activation::sine;
  return (field.input_dim() + hidden * field.width * (sine ? 2 : 1)) * kFieldSamples;
}
GINR_INLINE int64_t backward_floats(const Field& field) {
  return room_floats(field) + 3 * widest_of(field) * kFieldSamples;
}

// A range of samples of one instance.
struct FieldTask {
  Field field;
  Frequencies frequencies;
  FieldWeights weights;
  const float* coords;  // (count, d); or null, then
  FieldGrid grid;       // a grid's points from number `first` on, by
  const float* tables;  // its tables (grid.h)
  int64_t first;
  int64_t count;
  float* out;      // (count, out_dim)
  float* scratch;  // field_forward: task_forward_floats
};

struct FieldGradTask {
  Field field;
  Frequencies frequencies;
  FieldWeights weights;
  const float* coords;  // or null: as above
  FieldGrid grid;
  const float* tables;
  int64_t first;
  const float* grad;  // (count, out_dim)
  int64_t count;
  float* grad_weights;  // (P), added to; or null
  float* grad_coords;   // (count, d), written; or null, as always for a grid
  float* table_grads;   // for a grid and grad_weights: table_floats
  float* scratch;       // task_backward_floats
};

// The gradient of the weight gradient along `along`; see second_block.h.
struct FieldSecondTask {
  Field field;
  Frequencies frequencies;
  FieldWeights weights;
  const float* along;  // (P)
  const float* coords;  // (count, d)
  const float* grad;    // (count, out_dim)
  int64_t count;
  float* grad_weights;  // (P), added to; or null
  float* grad_grad;     // (count, out_dim), written
  float* scratch;       // task_second_floats
};

GINR_INLINE int64_t task_forward_floats(const Field& field) {
  return forward_floats(field) + (field.coord_dim + field.out_dim) * kFieldSamples;
}
GINR_INLINE int64_t task_bf16_floats(const Field& field) {
  return (field.input_dim() + widest_of(field) + 2 + field.coord_dim + field.out_dim) *
         kFieldSamples;
}
GINR_INLINE int64_t task_backward_floats(const Field& field) {
  return kept_floats(field) + backward_floats(field) +
         (2 * field.coord_dim + 3 * field.out_dim) * kFieldSamples;
}

GINR_INLINE int64_t task_second_floats(const Field& field) {
  return room_floats(field) + kept_floats(field) +
         (2 * field.layers() + 5) * widest_of(field) * kFieldSamples +
         (field.coord_dim + 3 * field.out_dim) * kFieldSamples;
}

#if defined(GINR_HAS_avx512_bf16)
namespace avx512_bf16 {
// `task.out` is (count, out_dim) of bfloat16; scratch: task_bf16_floats.
void field_forward_bf16(const FieldTask& task, const uint16_t* weights);
}
#endif

// A block of an instance's tables; see grid.h.
struct TableTask {
  Field field;
  Frequencies frequencies;
  const float* weights;  // packed row
  int64_t axis, count;   // at most kFieldSamples places of an axis
  const float* positions;
  float* table;    // [width][kFieldSamples]
  float* scratch;  // table_scratch
};
GINR_INLINE int64_t table_scratch(const Field& field) {
  return (1 + 3 * field.frequencies) * kFieldSamples;
}

GINR_DECLARE_SIMD(
  void field_table(const TableTask& task);
  void field_forward(const FieldTask& task);
  void field_backward(const FieldGradTask& task);
  void field_second(const FieldSecondTask& task);
  void add_rows(const float* rows, int64_t count, int64_t stride, int64_t columns, float* out);
  void vector_sine_cosine(const float* x, int64_t count, float* sine, float* cosine);
  void vector_exponential(const float* x, int64_t count, float* out);
)

}  // namespace ginr
