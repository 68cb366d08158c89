// The packed layout of a field's parameters; the Python side is ginr_fast/fields.py.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define GINR_HOST_DEVICE __host__ __device__
#else
#define GINR_HOST_DEVICE
#endif

// For functions that kernels and other sources share: no copy of one may be kept for all that was
// compiled for one path's instructions (see simd.h).
#define GINR_INLINE inline __attribute__((always_inline))

namespace ginr {

// One parameter (a weight matrix or a bias) in the packed row of P numbers of one instance: layer
// by layer, the weight (out, in) row-major, then the bias (out).
struct Segment {
  int64_t layer;   // which layer it belongs to
  int64_t offset;  // its first number in the packed row
  int64_t size;    // how many numbers it has
};

enum class Activation : int32_t { none = 0, relu = 1, sine = 2 };

// A field without a view branch: layer l maps columns(l) numbers to rows(l).
struct Field {
  int64_t coord_dim;
  int64_t out_dim;
  int64_t width;
  int64_t hidden_layers;
  int64_t frequencies;  // of the Fourier encoding; 0: the first layer takes the coordinate
  Activation activation;
  Activation out_activation;
  float w0;
  bool bias;

  GINR_HOST_DEVICE int64_t layers() const { return hidden_layers + 2; }
  GINR_HOST_DEVICE int64_t input_dim() const {
    return frequencies > 0 ? 2 * coord_dim * frequencies : coord_dim;
  }
  GINR_HOST_DEVICE int64_t rows(int64_t l) const { return l + 1 == layers() ? out_dim : width; }
  GINR_HOST_DEVICE int64_t columns(int64_t l) const { return l == 0 ? input_dim() : width; }
  GINR_HOST_DEVICE int64_t weight(int64_t l) const {  // offset of its weight in the packed row
    const int64_t first = width * (input_dim() + (bias ? 1 : 0));
    return l == 0 ? 0 : first + (l - 1) * width * (width + (bias ? 1 : 0));
  }
  GINR_HOST_DEVICE int64_t bias_at(int64_t l) const { return weight(l) + rows(l) * columns(l); }
  GINR_HOST_DEVICE int64_t parameters() const {
    const int64_t last = layers() - 1;
    return bias_at(last) + (bias ? rows(last) : 0);
  }
  GINR_HOST_DEVICE Activation activation_after(int64_t l) const {
    return l + 1 == layers() ? out_activation : activation;
  }
};

}  // namespace ginr
