// volume_render and composite on the CPU, float32.
#pragma once

#include <cstdint>

#include "volume_render/job.h"

namespace ginr {
namespace volume_render {
namespace cpu {

// B fields, N rays each.
struct Batch {
  Field field;
  Frequencies frequencies;
  Rendering rendering;
  int64_t batch;
  int64_t rays;
  RayNumbers numbers;
};

// origins and directions (B, N, 3); out (B, N, channels + 2). Without a grid, occupancy.bits is
// null.
void forward(const Batch& batch, const Occupancy& occupancy, const float* weights,
             const float* origins, const float* directions, float* out, int threads);

// grad_weights (B, P), or null; grad_origins and grad_directions (B, N, 3), or both null.
void backward(const Batch& batch, const float* weights, const float* origins,
              const float* directions, const float* grad, float* grad_weights, float* grad_origins,
              float* grad_directions, int threads);

// Tasks with all rays; scratch is filled in.
void composite(const CompositeTask& all, int threads);
void composite_backward(const CompositeGradTask& all, int threads);

}  // namespace cpu
}  // namespace volume_render
}  // namespace ginr
