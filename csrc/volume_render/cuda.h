// volume_render and composite on an NVIDIA GPU: enqueues on `stream` of `device` and returns.
// Arrays are contiguous, float32 unless said otherwise, and on the device. Throws
// std::runtime_error if CUDA refuses the launch.
//
// Fields have 3 coordinates and 4 values. A ray's result is its colour, opacity and depth: 5
// numbers.
#pragma once

#include <cstdint>
#include <string>

#include "field_mlp/cuda.h"
#include "volume_render/formula.h"
#include "volume_render/occupancy.h"

namespace ginr {
namespace volume_render {
namespace cuda {

using field_mlp::cuda::BackwardSizes;
using field_mlp::cuda::Launch;

// B fields, N rays each; the types as in field_mlp/cuda.h.
struct Batch {
  const field_mlp::Problem& problem;
  const Rendering& rendering;
  int weight_type;
  int operand_type;
  int64_t batch;
  int64_t rays;
  RayNumbers numbers;
};

// Why a device cannot render a field, or an empty string.
std::string refusal(const field_mlp::Problem& problem, int operand_type, bool backward, int device);

// weights (B, P), origins and directions (B, N, 3) -> out (B, N, 5). Without a grid, occupancy.bits
// is null. `values` (B, N, S, 4), if not null, gets the field along the rays for a backward; only
// without a grid, which leaves samples out.
void forward(const Batch& batch, const Occupancy& occupancy, const void* weights,
             const float* origins, const float* directions, float* out, float* values,
             Launch launch);

BackwardSizes backward_sizes(const Batch& batch, int device);

// grad (B, N, 5) -> partial (parts, B, P), whose sum over the parts is the gradient of the weights.
// `values` are those of the forward; grad_values (B, N, S, 4) is a workspace. `sizes` are those of
// backward_sizes.
void backward(const Batch& batch, const BackwardSizes& sizes, const void* weights,
              const float* origins, const float* directions, const float* values,
              const float* grad, float* grad_values, float* partial, void* workspace,
              Launch launch);

// Values that are there already.
struct Values {
  const Rendering& rendering;  // S samples
  int64_t rays;                // R
  const float* values;         // (R, S, 4) before their activations
  const float* t;              // (R, S)
  const float* scale;          // (R): |d| or 1
};

// out (R, 5)
void composite(const Values& values, float* out, Launch launch);

// grad (R, 5) -> grad_values (R, S, 4), and grad_t (R, S) and grad_scale (R), each or null
void composite_backward(const Values& values, const float* grad, float* grad_values, float* grad_t,
                        float* grad_scale, Launch launch);

}  // namespace cuda
}  // namespace volume_render
}  // namespace ginr
