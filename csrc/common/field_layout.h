// The packed layout of a field's parameters; the Python side is ginr_fast/fields.py.
#pragma once

#include <cstdint>

namespace ginr {

// One parameter (a weight matrix or a bias) in the packed row of P numbers of one instance: layer
// by layer, the weight (out, in) row-major, then the bias (out).
struct Segment {
  int64_t layer;   // which layer it belongs to
  int64_t offset;  // its first number in the packed row
  int64_t size;    // how many numbers it has
};

}  // namespace ginr
