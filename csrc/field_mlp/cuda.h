// field_mlp on an NVIDIA GPU: enqueues on `stream` of `device` and returns. Arrays are contiguous
// and on the device. Throws std::runtime_error if CUDA refuses the launch.
#pragma once

#include <cstdint>
#include <string>

#include "common/field_layout.h"
#include "field_mlp/problem.h"

namespace ginr {
namespace field_mlp {
namespace cuda {

// What the weights are in memory: 0 float32, 1 float16, 2 bfloat16.
// What matrix products multiply: 0 float32 (three tf32 products), 1 float16, 2 bfloat16.
struct Batch {
  const Problem& problem;
  int weight_type;
  int operand_type;
  int64_t batch;  // B
  int64_t count;  // N
  bool shared;    // coordinates are (1, N, d), otherwise (B, N, d)
};

struct Launch {
  int device;
  uintptr_t stream;
};

// Why a device cannot serve a field, or an empty string.
std::string refusal(const Problem& problem, int operand_type, bool backward, int device);

// weights (B, P), coords float32 -> out (B, N, out_dim) float32
void forward(const Batch& batch, const void* weights, const float* coords, float* out,
             Launch launch);

// What a backward needs: partial sums of the gradient (parts, B, P) float32, and a workspace.
struct BackwardSizes {
  int64_t parts;
  int64_t workspace;  // bytes
};
BackwardSizes backward_sizes(const Batch& batch, int device);

// grad (B, N, out_dim) float32 -> partial (parts, B, P), whose sum over the parts is the gradient
// of the weights, and grad_coords (B, N, d); either may be null. `sizes` are those of
// backward_sizes.
void backward(const Batch& batch, const BackwardSizes& sizes, const void* weights,
              const float* coords, const float* grad, float* partial, float* grad_coords,
              void* workspace, Launch launch);

}  // namespace cuda
}  // namespace field_mlp
}  // namespace ginr
