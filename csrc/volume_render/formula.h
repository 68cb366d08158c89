// Volume rendering along one ray, one formula for every backend (host and device).
//
//   delta_k = (t_{k+1} - t_k) s,  delta_{S-1} = last_interval s,   s = |d| or 1
//   e_k = exp(-sigma_k delta_k),  T_0 = 1,  T_{k+1} = T_k (e_k + epsilon),  w_k = T_k (1 - e_k)
//   color = sum_k w_k c_k (+ 1 - opacity on white),  opacity = sum_k w_k,  depth = sum_k w_k t_k
//
// The Python side is ginr_fast/ops/volume_render/convention.py.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/field_layout.h"

namespace ginr {

enum class ColorActivation : int32_t { none = 0, sigmoid = 1 };
enum class DensityActivation : int32_t { relu = 0, shifted_elu = 1, none = 2 };
enum class Jitter : int32_t { none = 0, midpoints = 1, forward = 2 };

struct Rendering {
  int64_t samples;  // S, evaluations of the field along a ray
  float near, far;
  ColorActivation color;
  DensityActivation density;
  float last_interval;
  bool scale_by_norm;  // intervals are lengths: multiplied by |d|
  bool white_background;
  float epsilon;
  Jitter jitter;
  uint64_t seed;
};

// What the random numbers along a ray belong to.
struct RayNumbers {
  const uint64_t* first;  // (B), of each instance's first ray; null: rays are numbered through
  int64_t rays;           // N of an instance

  // The number of a ray of instance b, counted through the batch.
  GINR_HOST_DEVICE uint64_t of(int64_t b, int64_t ray) const {
    return static_cast<uint64_t>(ray) +
           (first == nullptr ? 0 : first[b] - static_cast<uint64_t>(b * rays));
  }
};

// Four random words that depend on the arguments alone: Philox4x32-10 (Salmon et al., "Parallel
// random numbers: as easy as 1, 2, 3", 2011), the seed as key, (ray, group) as counter.
GINR_HOST_DEVICE inline void random_words(uint64_t seed, uint64_t ray, uint32_t group,
                                          uint32_t word[4]) {
  uint32_t c0 = static_cast<uint32_t>(ray), c1 = static_cast<uint32_t>(ray >> 32);
  uint32_t c2 = group, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  word[0] = c0;
  word[1] = c1;
  word[2] = c2;
  word[3] = c3;
}

// A word as a number in [0, 1), 24 bits.
GINR_HOST_DEVICE inline float unit_interval(uint32_t word) {
  return static_cast<float>(word >> 8) * (1.0f / 16777216.0f);
}

// The number that belongs to a sample of a ray.
GINR_HOST_DEVICE inline float uniform_number(uint64_t seed, uint64_t ray, uint32_t sample) {
  uint32_t word[4];
  random_words(seed, ray, sample / 4, word);
  return unit_interval(word[sample % 4]);
}

// near .. far in samples - 1 equal steps, counted from the nearer end as torch.linspace does.
GINR_HOST_DEVICE inline float regular_position(const Rendering& r, int64_t k) {
  if (r.samples == 1) return r.near;
  const float step = (r.far - r.near) / static_cast<float>(r.samples - 1);
  return k < r.samples / 2 ? r.near + step * static_cast<float>(k)
                           : r.far - step * static_cast<float>(r.samples - 1 - k);
}

// t_k, moved by the random number u.
GINR_HOST_DEVICE inline float jittered_position(const Rendering& r, int64_t k, float u) {
  const float t = regular_position(r, k);
  if (r.samples == 1) return t;
  if (r.jitter == Jitter::forward) {
    return t + u * ((r.far - r.near) / static_cast<float>(r.samples - 1));
  }
  const float low = k == 0 ? t : 0.5f * (regular_position(r, k - 1) + t);
  const float high = k + 1 == r.samples ? t : 0.5f * (t + regular_position(r, k + 1));
  return low + u * (high - low);
}

// t_k of the ray of a number.
GINR_HOST_DEVICE inline float sample_position(const Rendering& r, uint64_t ray, int64_t k) {
  if (r.jitter == Jitter::none) return regular_position(r, k);
  return jittered_position(r, k, uniform_number(r.seed, ray, static_cast<uint32_t>(k)));
}

GINR_HOST_DEVICE inline float ray_scale(const Rendering& r, const float* direction) {
  if (!r.scale_by_norm) return 1.0f;
  return sqrtf(direction[0] * direction[0] + direction[1] * direction[1] +
               direction[2] * direction[2]);
}

GINR_HOST_DEVICE inline float density_of(DensityActivation f, float x) {
  if (f == DensityActivation::none) return x;
  if (f == DensityActivation::relu) return x <= 0.0f ? 0.0f : x;
  const float y = x > 0.0f ? x + 0.1f : 0.1f * expf(x);  // ELU(x; 0.1) + 0.1
  return y > 10.0f ? 10.0f : y;
}

GINR_HOST_DEVICE inline float density_slope(DensityActivation f, float x) {
  if (f == DensityActivation::none) return 1.0f;
  if (f == DensityActivation::relu) return x <= 0.0f ? 0.0f : 1.0f;
  if (x > 0.0f) return x + 0.1f > 10.0f ? 0.0f : 1.0f;
  return 0.1f * expf(x);
}

GINR_HOST_DEVICE inline float color_of(ColorActivation f, float x) {
  return f == ColorActivation::sigmoid ? 1.0f / (1.0f + expf(-x)) : x;
}

// From the activated colour.
GINR_HOST_DEVICE inline float color_slope(ColorActivation f, float color) {
  return f == ColorActivation::sigmoid ? color * (1.0f - color) : 1.0f;
}

}  // namespace ginr
