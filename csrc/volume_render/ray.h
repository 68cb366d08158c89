// Activations and compositing of the samples of some rays; formula.h has the equations.
//
// Samples of all rays of a group are numbered through, ray by ray, and lie in blocks of kSamples:
// the values of block b are [channels + 1][kSamples] from `values + b * (channels + 1) * kSamples`.
#pragma once

#include "common/vector_math.h"
#include "field_mlp/job.h"
#include "volume_render/formula.h"

namespace ginr {
namespace GINR_SIMD {

// Per-sample arrays of a group.
struct Samples {
  float* position;  // t
  float* interval;  // before scaling: t_{k+1} - t_k
  float* delta;     // scaled
  float* sigma;     // density
  float* passed;    // e = exp(-sigma delta)
  float* light;     // T, what arrives from the camera
  float* weight;    // w

  Samples(float* base, int64_t row)
      : position(base),
        interval(base + row),
        delta(base + 2 * row),
        sigma(base + 3 * row),
        passed(base + 4 * row),
        light(base + 5 * row),
        weight(base + 6 * row) {}
};

inline float& value_at(float* values, int64_t out_dim, int64_t channel, int64_t sample) {
  return values[(sample / kFieldSamples * out_dim + channel) * kFieldSamples +
                sample % kFieldSamples];
}

// t of every sample of a ray.
inline void ray_positions(const Rendering& r, uint64_t ray, float* position) {
  for (int64_t k = 0; k < r.samples; ++k) {
    if (r.jitter == Jitter::none) {
      position[k] = regular_position(r, k);
      continue;
    }
    uint32_t word[4];
    if (k % 4 == 0) random_words(r.seed, ray, static_cast<uint32_t>(k / 4), word);
    position[k] = jittered_position(r, k, unit_interval(word[k % 4]));
  }
}

inline void ray_intervals(const Rendering& r, float scale, const float* position, float* interval,
                          float* delta) {
  for (int64_t k = 0; k < r.samples; ++k) {
    interval[k] = k + 1 < r.samples ? position[k + 1] - position[k] : r.last_interval;
    delta[k] = interval[k] * scale;
  }
}

inline Floats density(DensityActivation f, Floats x) {
  if (f == DensityActivation::none) return x;
  if (f == DensityActivation::relu) return Floats::max(all(0.0f), x);
  const Floats y = Floats::where_not_positive(x, all(0.1f) * exponential(x), x + all(0.1f));
  return Floats::min(all(10.0f), y);
}

inline Floats density_slope(DensityActivation f, Floats x) {
  if (f == DensityActivation::none) return all(1.0f);
  if (f == DensityActivation::relu) return Floats::where_not_positive(x, all(0.0f), all(1.0f));
  const Floats above = Floats::where_not_positive(x + all(0.1f) - all(10.0f), all(1.0f), all(0.0f));
  return Floats::where_not_positive(x, all(0.1f) * exponential(x), above);
}

// Activates one block: colours in place, sigma and e beside; the density stays as it was.
inline void activate(const Rendering& r, int64_t channels, float* values, int64_t first,
                     const Samples& samples) {
  if (r.color == ColorActivation::sigmoid) {
    for (int64_t i = 0; i < channels * kFieldSamples; i += Floats::width) {
      const Floats x = Floats::load(values + i);
      Floats::div(all(1.0f), all(1.0f) + exponential(all(0.0f) - x)).store(values + i);
    }
  }
  const float* raw = values + channels * kFieldSamples;
  for (int64_t i = 0; i < kFieldSamples; i += Floats::width) {
    const Floats sigma = density(r.density, Floats::load(raw + i));
    sigma.store(samples.sigma + first + i);
    const Floats depth = sigma * Floats::load(samples.delta + first + i);
    exponential(all(0.0f) - depth).store(samples.passed + first + i);
  }
}

// One ray from its samples: colour, opacity, depth; keeps T.
inline void composite_ray(const Rendering& r, int64_t channels, float* values, int64_t first,
                          const Samples& samples, float* out) {
  for (int64_t c = 0; c < channels + 2; ++c) out[c] = 0.0f;
  float light = 1.0f, opacity = 0.0f, depth = 0.0f;
  for (int64_t i = first; i < first + r.samples; ++i) {
    const float passed = samples.passed[i], weight = light * (1.0f - passed);
    samples.light[i] = light;
    samples.weight[i] = weight;
    opacity += weight;
    depth += weight * samples.position[i];
    light *= passed + r.epsilon;
  }
  out[channels] = opacity;
  out[channels + 1] = depth;
  // A ray may lie across blocks: colours are summed block by block.
  for (int64_t i = first; i < first + r.samples;) {
    const int64_t in_block = kFieldSamples - i % kFieldSamples;
    const int64_t left = first + r.samples - i, count = left < in_block ? left : in_block;
    for (int64_t c = 0; c < channels; ++c) {
      const float* color = &value_at(values, channels + 1, c, i);
      Floats sum = all(0.0f);
      int64_t k = 0;
      for (; k + Floats::width <= count; k += Floats::width) {
        sum = Floats::fma(Floats::load(color + k), Floats::load(samples.weight + i + k), sum);
      }
      if (k < count) {
        const Floats rest = Floats::load_first(color + k, count - k);
        sum = Floats::fma(rest, Floats::load_first(samples.weight + i + k, count - k), sum);
      }
      out[c] += sum.sum();
    }
    i += count;
  }
  if (r.white_background) {
    for (int64_t c = 0; c < channels; ++c) out[c] += 1.0f - out[channels];
  }
}

// The gradient of one ray's activated colours and of its sigma (in the density's place). Adds to
// grad_position, if given, what comes through depth and intervals; returns dL/d(scale).
inline float composite_ray_backward(const Rendering& r, int64_t channels, float* values,
                                    int64_t first, const Samples& samples, float scale,
                                    const float* grad, float* grad_values, float* grad_position) {
  float of_opacity = grad[channels];
  const float of_depth = grad[channels + 1];
  if (r.white_background) {
    for (int64_t c = 0; c < channels; ++c) of_opacity -= grad[c];
  }
  float behind = 0.0f, of_scale = 0.0f;  // dL/dT of the next sample
  for (int64_t i = first + r.samples - 1; i >= first; --i) {
    const float passed = samples.passed[i], light = samples.light[i];
    const float weight = light * (1.0f - passed);
    float of_weight = of_opacity + of_depth * samples.position[i];
    for (int64_t c = 0; c < channels; ++c) {
      of_weight += grad[c] * value_at(values, channels + 1, c, i);
      value_at(grad_values, channels + 1, c, i) = weight * grad[c];
    }
    const float of_passed = light * (behind - of_weight);
    // e delta and e sigma first: e is 0 where the last interval is 1e10.
    value_at(grad_values, channels + 1, channels, i) = -of_passed * (passed * samples.delta[i]);
    const float of_delta = -of_passed * (passed * samples.sigma[i]);
    of_scale += of_delta * samples.interval[i];
    if (grad_position != nullptr) {
      grad_position[i - first] += of_depth * weight;
      if (i + 1 < first + r.samples) {
        grad_position[i - first] -= of_delta * scale;
        grad_position[i - first + 1] += of_delta * scale;
      }
    }
    behind = (1.0f - passed) * of_weight + (passed + r.epsilon) * behind;
  }
  return of_scale;
}

// Through the activations of one block, in place.
inline void activate_backward(const Rendering& r, int64_t channels, const float* values,
                              float* grad_values) {
  if (r.color == ColorActivation::sigmoid) {
    for (int64_t i = 0; i < channels * kFieldSamples; i += Floats::width) {
      const Floats color = Floats::load(values + i);
      (Floats::load(grad_values + i) * color * (all(1.0f) - color)).store(grad_values + i);
    }
  }
  const int64_t at = channels * kFieldSamples;
  for (int64_t i = at; i < at + kFieldSamples; i += Floats::width) {
    const Floats slope = density_slope(r.density, Floats::load(values + i));
    (Floats::load(grad_values + i) * slope).store(grad_values + i);
  }
}

}  // namespace GINR_SIMD
}  // namespace ginr
