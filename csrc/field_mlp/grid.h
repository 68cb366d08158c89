// Points on a grid: the first layer of an encoded field is a sum of tables there, one an axis,
//
//   W_0 γ(v) + b_0 = Σ_a T_a[:, i_a],   T_a[r][i] = Σ_j C_a[r][j] cos(ω_j x_i) + S_a[r][j] sin(ω_j x_i)
//
// with C_a and S_a the columns of W_0 for axis a. Its gradient is the same sum read backward: what
// arrives at every point is added up for each place of each axis, and multiplied with the features
// once. A table is kept in blocks of places, each [width][kFieldSamples].
#pragma once

#include <cstdint>

#include "field_mlp/job.h"

namespace ginr {

GINR_INLINE int64_t axis_blocks(const FieldGrid& grid, int64_t axis) {
  return (grid.shape[axis] + kFieldSamples - 1) / kFieldSamples;
}
GINR_INLINE int64_t table_blocks(const FieldGrid& grid) {
  int64_t blocks = 0;
  for (int64_t a = 0; a < grid.dims; ++a) blocks += axis_blocks(grid, a);
  return blocks;
}
// Floats of an instance's tables.
GINR_INLINE int64_t table_floats(const Field& field, const FieldGrid& grid) {
  return table_blocks(grid) * field.width * kFieldSamples;
}

// Some places of an axis, at most kFieldSamples, that have a block of a table.
struct TablePlaces {
  int64_t axis;
  int64_t count;
  const float* positions;
};

GINR_INLINE TablePlaces places_of_block(const FieldGrid& grid, int64_t block) {
  int64_t axis = 0;
  const float* positions = grid.axes;
  for (; block >= axis_blocks(grid, axis); ++axis) {
    block -= axis_blocks(grid, axis);
    positions += grid.shape[axis];
  }
  const int64_t first = block * kFieldSamples, left = grid.shape[axis] - first;
  return {axis, left < kFieldSamples ? left : kFieldSamples, positions + first};
}

// Whether points first .. first + count of a grid have places in a block of its tables.
GINR_INLINE bool reaches(const FieldGrid& grid, int64_t block, int64_t first, int64_t count) {
  if (count <= 0) return false;
  int64_t axis = 0, inner = 1;
  for (; block >= axis_blocks(grid, axis); ++axis) block -= axis_blocks(grid, axis);
  for (int64_t a = axis + 1; a < grid.dims; ++a) inner *= grid.shape[a];
  const int64_t size = grid.shape[axis];
  const int64_t low = first / inner, high = (first + count - 1) / inner;
  if (high - low + 1 >= size) return true;  // once around
  const int64_t from = low % size, to = high % size;
  const int64_t begin = block * kFieldSamples;
  const int64_t end = begin + kFieldSamples < size ? begin + kFieldSamples : size;
  return from <= to ? from < end && begin <= to : from < end || begin <= to;
}

}  // namespace ginr
