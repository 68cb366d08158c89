// Which cells of a box a field leaves empty: a bit each. Host and device; the Python side is
// ginr_fast/ops/volume_render/occupancy.py.
#pragma once

#include <cstdint>

#include "common/field_layout.h"

namespace ginr {

// Cell (x, y, z) of R^3 is bit (x R + y) R + z of its instance, lowest bits first.
struct Occupancy {
  const uint32_t* bits;  // (B, words); null: nothing is skipped
  int64_t resolution;    // R
  int64_t words;         // of an instance
  float low[3], high[3];
  float stop;  // a ray ends where less than this share of the light passes

  // A coordinate of a point, or with origin = 0 of a direction, in cells.
  GINR_HOST_DEVICE float in_cells(float x, float origin, int axis) const {
    return (x - origin) * (static_cast<float>(resolution) / (high[axis] - low[axis]));
  }

  // Whether the field may hold something at a place given in cells; outside the box it may.
  // `of_instance`: its words.
  GINR_HOST_DEVICE bool may_hold_cell(const uint32_t* of_instance, const float* at) const {
    const float end = static_cast<float>(resolution);
    if (!(at[0] >= 0.0f && at[0] < end && at[1] >= 0.0f && at[1] < end && at[2] >= 0.0f &&
          at[2] < end)) {
      return true;
    }
    // R <= 512: the number of a cell has at most 27 bits.
    const uint32_t side = static_cast<uint32_t>(resolution);
    const uint32_t cell = (static_cast<uint32_t>(at[0]) * side + static_cast<uint32_t>(at[1])) *
                              side +
                          static_cast<uint32_t>(at[2]);
    return ((of_instance[cell / 32] >> (cell % 32)) & 1u) != 0;
  }

  // The same of a point.
  GINR_HOST_DEVICE bool may_hold(const uint32_t* of_instance, const float* p) const {
    const float at[3] = {in_cells(p[0], low[0], 0), in_cells(p[1], low[1], 1),
                         in_cells(p[2], low[2], 2)};
    return may_hold_cell(of_instance, at);
  }
};

// Intervals as long as this are meant to have no end: opaque however thin the field is there, so
// that their samples are never skipped.
constexpr float kEndlessInterval = 1e6f;

}  // namespace ginr
