// A field's weights as the kernels of the path amx take them: those of its wide layers, in three
// bfloat16 parts (split_gemm/tiles.h), each as it is and transposed.
#pragma once

#include <cstdint>

#include "common/field_layout.h"
#include "split_gemm/kernels.h"

namespace ginr {

// Parts that stand for a float32, none of its bits lost.
constexpr int kFieldParts = 3;
// Narrower layers are as fast on the vector units, and their weights stay in the first-level cache.
constexpr int64_t kShortestSplitSide = 64, kSmallestSplit = 112 * 112;

GINR_INLINE int64_t padded_panels(int64_t rows) {
  return (rows + kPanelRows - 1) / kPanelRows * kPanelRows;
}
// uint16_t of a packed matrix.
GINR_INLINE int64_t split_size(int64_t rows, int64_t depth) {
  return padded_panels(rows) / kPanelRows * packed_panel(depth, kFieldParts);
}

GINR_INLINE bool has_split(const Field& field, int64_t l) {
  const int64_t rows = field.rows(l), columns = field.columns(l);
  return rows >= kShortestSplitSide && columns >= kShortestSplitSide &&
         rows * columns >= kSmallestSplit;
}

// Where layer l begins in the split row of an instance, and where its transpose does; `l` may be
// layers(): then the size of a row.
GINR_INLINE int64_t split_weight(const Field& field, int64_t l) {
  int64_t at = 0;
  for (int64_t before = 0; before < l; ++before) {
    if (!has_split(field, before)) continue;
    at += split_size(field.rows(before), field.columns(before)) +
          split_size(field.columns(before), field.rows(before));
  }
  return at;
}
GINR_INLINE int64_t split_transpose(const Field& field, int64_t l) {
  return split_weight(field, l) + split_size(field.rows(l), field.columns(l));
}

// Floats of the room in which a block's activations are packed: one operand of `samples` columns or
// of that depth, and a panel of another.
GINR_INLINE int64_t split_room(int64_t widest, int64_t samples) {
  return (split_size(padded_panels(widest), samples) + packed_panel(samples, kFieldParts)) / 2;
}

}  // namespace ginr
