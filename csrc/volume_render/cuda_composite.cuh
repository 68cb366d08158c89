// Compositing of given values, one warp a ray, 32 samples at a time.
#pragma once

#include "volume_render/cuda_kernels.cuh"

namespace ginr {
namespace volume_render {
namespace cuda {

constexpr int kCompositeWarps = 4;

// Where values lie along rays: given, or as a rendering places its samples.
struct Samples {
  int64_t rays;           // R
  const float* values;    // (R, S, 4) colour and density as the field gives them
  const float* t;         // (R, S), or null: of the rendering
  const float* scale;     // (R), of the intervals, or null: from directions
  const float* directions;  // (R, 3)
  Rendering rendering;
  RayNumbers numbers;
};

// One sample as a lane has it; past the end of the ray it changes nothing.
struct Sample {
  float t, interval, e, passed;  // t_k, delta_k / scale, e_k, e_k + epsilon
};

GINR_DEVICE float ray_scale_of(const Samples& in, int64_t ray) {
  if (in.scale != nullptr) return in.scale[ray];
  return ray_scale(in.rendering, in.directions + 3 * ray);
}

GINR_DEVICE Sample sample_at(const Samples& in, int64_t ray, int64_t k, float scale) {
  const int64_t samples = in.rendering.samples;
  if (k >= samples) return {0.0f, 0.0f, 1.0f, 1.0f};
  Sample s;
  if (in.t != nullptr) {
    const float* t = in.t + ray * samples + k;
    s.t = t[0];
    s.interval = k + 1 == samples ? in.rendering.last_interval : t[1] - t[0];
  } else {
    const uint64_t number = in.numbers.of(ray / in.numbers.rays, ray);
    s.t = ray_position(in.rendering, number, k);
    s.interval = interval(in.rendering, number, k, s.t);
  }
  const float density =
      density_of(in.rendering.density, in.values[(ray * samples + k) * 4 + 3]);
  s.e = expf(-density * (s.interval * scale));
  s.passed = s.e + in.rendering.epsilon;
  return s;
}

// The product over the lanes below, times `carry`, which then takes in all lanes.
GINR_DEVICE float transmittance(float passed, float& carry) {
  for (int step = 1; step < kWarp; step *= 2) {
    const float before = __shfl_up_sync(kAll, passed, step);
    if (lane() >= step) passed *= before;
  }
  const float before = __shfl_up_sync(kAll, passed, 1);
  const float result = carry * (lane() == 0 ? 1.0f : before);
  carry *= __shfl_sync(kAll, passed, kWarp - 1);
  return result;
}

__global__ void __launch_bounds__(kCompositeWarps* kWarp)
    composite_kernel(const __grid_constant__ Samples in, float* out) {
  const int64_t ray = static_cast<int64_t>(blockIdx.x) * kCompositeWarps + warp();
  if (ray >= in.rays) return;
  const int64_t samples = in.rendering.samples;
  const float scale = ray_scale_of(in, ray);
  Sums sums = {};
  float carry = 1.0f;
  for (int64_t first = 0; first < samples; first += kWarp) {
    const int64_t k = first + lane();
    const Sample s = sample_at(in, ray, k, scale);
    const float weight = transmittance(s.passed, carry) * (1.0f - s.e);
    if (k < samples) {
      const float* value = in.values + (ray * samples + k) * 4;
      const Sums more = {{weight * color_of(in.rendering.color, value[0]),
                          weight * color_of(in.rendering.color, value[1]),
                          weight * color_of(in.rendering.color, value[2])},
                         weight,
                         weight * s.t};
      sums = sums + more;
    }
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    Sums more;
    for (int i = 0; i < 3; ++i) more.color[i] = __shfl_xor_sync(kAll, sums.color[i], step);
    more.opacity = __shfl_xor_sync(kAll, sums.opacity, step);
    more.depth = __shfl_xor_sync(kAll, sums.depth, step);
    sums = sums + more;
  }
  if (lane() == 0) store(sums, in.rendering.white_background, out + ray * kResults);
}

// Gradients of a launch; t and scale may be null.
struct SampleGrads {
  float* values;  // (R, S, 4)
  float* t;       // (R, S)
  float* scale;   // (R)
};

// grad (R, 5). With G_k = dL/dw_k, the gradient A_k of T_k follows backwards from
//   A_k = G_k (1 - e_k) + (e_k + epsilon) A_{k+1},
// and that of sigma_k delta_k is e_k T_k (G_k - A_{k+1}). Nothing is divided, so that opaque
// samples are no exception; e_k comes before factors that may be 1e10.
__global__ void __launch_bounds__(kCompositeWarps* kWarp)
    composite_backward_kernel(const __grid_constant__ Samples in, const float* grad,
                              const SampleGrads out) {
  const int64_t ray = static_cast<int64_t>(blockIdx.x) * kCompositeWarps + warp();
  if (ray >= in.rays) return;
  const int64_t samples = in.rendering.samples;
  const float scale = ray_scale_of(in, ray);
  const float* of_ray = grad + ray * kResults;
  const float color[3] = {of_ray[0], of_ray[1], of_ray[2]}, depth = of_ray[4];
  const float white = in.rendering.white_background ? color[0] + color[1] + color[2] : 0.0f;
  const float opacity = of_ray[3] - white;

  // T_k, kept where the gradient of the density will be.
  float carry = 1.0f;
  for (int64_t first = 0; first < samples; first += kWarp) {
    const int64_t k = first + lane();
    const float here = transmittance(sample_at(in, ray, k, scale).passed, carry);
    if (k < samples) out.values[(ray * samples + k) * kValues + 3] = here;
  }
  float after = 0.0f, of_scale = 0.0f;  // A at the first sample of the 32 after these
  for (int64_t first = (samples - 1) / kWarp * kWarp; first >= 0; first -= kWarp) {
    const int64_t k = first + lane(), at = ray * samples + k;
    const bool inside = k < samples;
    const Sample s = sample_at(in, ray, k, scale);
    float value[3] = {0.0f, 0.0f, 0.0f}, density = 0.0f, here = 0.0f, of_weight = 0.0f;
    if (inside) {
      const float* from = in.values + at * kValues;
      for (int i = 0; i < 3; ++i) value[i] = color_of(in.rendering.color, from[i]);
      density = from[3];
      here = out.values[at * kValues + 3];
      of_weight = color[0] * value[0] + color[1] * value[1] + color[2] * value[2] + opacity +
                  depth * s.t;
    }
    // A_k = add + factor A of the lanes after: composed pairwise from the last lane down.
    float factor = s.passed, add = of_weight * (1.0f - s.e);
    for (int step = 1; step < kWarp; step *= 2) {
      const float next_factor = __shfl_down_sync(kAll, factor, step);
      const float next_add = __shfl_down_sync(kAll, add, step);
      if (lane() + step < kWarp) {
        add = fmaf(factor, next_add, add);
        factor *= next_factor;
      }
    }
    const float of_here = fmaf(factor, after, add);
    float of_next = __shfl_down_sync(kAll, of_here, 1);
    if (lane() == kWarp - 1) of_next = after;
    after = __shfl_sync(kAll, of_here, 0);

    const float weight = here * (1.0f - s.e), of_depth = here * (of_weight - of_next);
    const float of_delta =
        of_depth * (s.e * density_of(in.rendering.density, density));  // scaled interval
    const bool moves = inside && k + 1 < samples;  // the last interval is fixed
    if (inside) {
      float* to = out.values + at * kValues;
      for (int i = 0; i < 3; ++i) {
        to[i] = weight * color[i] * color_slope(in.rendering.color, value[i]);
      }
      to[3] = of_depth * (s.e * s.interval * scale) * density_slope(in.rendering.density, density);
      of_scale = fmaf(of_delta, s.interval, of_scale);
    }
    if (out.t != nullptr) {
      const float mine = moves ? of_delta * scale : 0.0f;
      const float before = __shfl_up_sync(kAll, mine, 1);
      if (inside) out.t[at] = depth * weight - mine + (lane() == 0 ? 0.0f : before);
      __syncwarp();
      // The first of the 32 after these, written in the round before.
      if (moves && lane() == kWarp - 1) out.t[at + 1] += mine;
    }
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    of_scale += __shfl_xor_sync(kAll, of_scale, step);
  }
  if (out.scale != nullptr && lane() == 0) out.scale[ray] = of_scale;
}

}  // namespace cuda
}  // namespace volume_render
}  // namespace ginr
