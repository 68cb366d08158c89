// What a task of volume_render gets, and how much scratch memory it needs.
#pragma once

#include <cstdint>

#include "field_mlp/job.h"
#include "volume_render/formula.h"
#include "volume_render/occupancy.h"

namespace ginr {

// Rays of one instance. A ray's result is its colour, then opacity and depth: channels + 2 numbers.
struct RenderTask {
  Field field;
  Frequencies frequencies;
  Rendering rendering;
  FieldWeights weights;
  const float* origins;     // (rays, 3)
  const float* directions;  // (rays, 3)
  uint64_t first_ray;       // number of the first ray; the others follow
  int64_t rays;
  float* out;  // (rays, channels + 2)
  float* scratch;
};

struct RenderGradTask {
  Field field;
  Frequencies frequencies;
  Rendering rendering;
  FieldWeights weights;
  const float* origins;
  const float* directions;
  uint64_t first_ray;
  int64_t rays;
  const float* grad;       // (rays, channels + 2)
  float* grad_weights;     // (P), added to; or null
  float* grad_origins;     // (rays, 3), written; or null, then grad_directions too
  float* grad_directions;
  float* scratch;
};

// Values that are there already: (rays, S, channels + 1) before their activations.
struct CompositeTask {
  Rendering rendering;
  int64_t channels;
  const float* values;
  const float* positions;  // (rays, S)
  const float* scales;     // (rays): |d| or 1
  int64_t rays;
  float* out;
  float* scratch;
};

struct CompositeGradTask {
  Rendering rendering;
  int64_t channels;
  const float* values;
  const float* positions;
  const float* scales;
  int64_t rays;
  const float* grad;
  float* grad_values;     // (rays, S, channels + 1)
  float* grad_positions;  // (rays, S)
  float* grad_scales;     // (rays)
  float* scratch;
};

// Rays that are rendered together so that their samples fill whole blocks, as well as `most` rays
// allow.
inline int64_t rays_together(int64_t samples, int64_t most) {
  int64_t best = 1;
  double least = 2.0;
  for (int64_t rays = 1; rays <= most; ++rays) {
    const int64_t used = rays * samples;
    const int64_t taken = (used + kFieldSamples - 1) / kFieldSamples * kFieldSamples;
    const double waste = static_cast<double>(taken) / static_cast<double>(used);
    if (waste < least - 1e-9) {
      least = waste;
      best = rays;
    }
  }
  return best;
}

constexpr int64_t kForwardRays = 16;
constexpr int64_t kBackwardRays = 8;

inline int64_t group_blocks(int64_t samples, int64_t most) {
  return (rays_together(samples, most) * samples + kFieldSamples - 1) / kFieldSamples;
}

// Arrays of one number a sample; see Samples in ray.h.
constexpr int64_t kRenderRows = 7;

inline int64_t render_floats(const Field& field, int64_t samples) {
  const int64_t row = kFieldSamples * group_blocks(samples, kForwardRays);
  return row * (field.out_dim + field.coord_dim + kRenderRows) + forward_floats(field);
}
inline int64_t render_sparse_floats(const Field& field, int64_t samples, int64_t rays) {
  return rays * (samples * (field.out_dim + 1) + 1) +
         kFieldSamples * (10 + field.out_dim) + forward_floats(field);
}
inline int64_t render_grad_floats(const Field& field, int64_t samples) {
  const int64_t blocks = group_blocks(samples, kBackwardRays);
  const int64_t row = kFieldSamples * blocks;
  return row * (3 * field.out_dim + 2 * field.coord_dim + kRenderRows) +
         blocks * kept_floats(field) + backward_floats(field);
}
inline int64_t composite_floats(int64_t channels, int64_t samples) {
  const int64_t row = kFieldSamples * group_blocks(samples, kForwardRays);
  return row * (2 * (channels + 1) + kRenderRows);
}

GINR_DECLARE_SIMD(
  void render_forward(const RenderTask& task);
  void render_forward_sparse(const RenderTask& task, const Occupancy& occupancy,
                             const uint32_t* bits);
  void render_backward(const RenderGradTask& task);
  void composite_forward(const CompositeTask& task);
  void composite_backward(const CompositeGradTask& task);
)

}  // namespace ginr
