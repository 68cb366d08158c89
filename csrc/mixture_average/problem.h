// Sizes of one call of mixture_average, shared by the CPU and the CUDA side.
//
//   out[b, o_s + k] = sum_m a[b, layer(s), m] * base_s[m, k]        for every segment s
//
// is bilinear in (a, bases), so its two gradients are contractions of the same three arrays:
//
//   grad_a[b, l, m]     = sum_{s in layer l} sum_k grad[b, o_s + k] * base_s[m, k]
//   grad_base_s[m, k]   = sum_b a[b, layer(s), m] * grad[b, o_s + k]
#pragma once

#include <cstdint>
#include <vector>

#include "common/field_layout.h"

namespace ginr {
namespace mixture_average {

struct Problem {
  int64_t batch;                  // B
  int64_t layers;                 // L
  int64_t mixtures;               // M
  int64_t packed;                 // P, the sum of the segments' sizes
  std::vector<Segment> segments;  // in layer order

  // a[b, l, m] of a contiguous (B, L, M) array.
  int64_t coefficient(int64_t b, int64_t l, int64_t m) const {
    return (b * layers + l) * mixtures + m;
  }
};

}  // namespace mixture_average
}  // namespace ginr
