#include "volume_render/cuda.h"

#include "volume_render/cuda_composite.cuh"
#include "volume_render/cuda_launch.cuh"

namespace ginr {
namespace volume_render {
namespace cuda {
namespace {

using field_mlp::cuda::divided;
using field_mlp::cuda::Launcher;
using field_mlp::cuda::start;
using field_mlp::cuda::with_operand;

Source rays_of(const Batch& batch, const float* origins, const float* directions) {
  Source source = {};
  source.batch = batch.batch;
  source.count = batch.rays * batch.rendering.samples;
  source.origins = origins;
  source.directions = directions;
  source.numbers = batch.numbers;
  source.rendering = batch.rendering;
  return source;
}

Samples samples_of(const Values& values) {
  return {values.rays, values.values, values.t, values.scale, nullptr, values.rendering, {}};
}

dim3 composite_grid(int64_t rays) {
  return dim3(static_cast<unsigned>(divided(rays, kCompositeWarps)));
}

}  // namespace

std::string refusal(const field_mlp::Problem& problem, int operand_type, bool backward,
                    int device) {
  const Field& field = problem.field;
  if (field.coord_dim != 3 || field.out_dim != kValues) {
    return "on CUDA it serves 3 coordinates and 4 values";
  }
  const std::string reason =
      field_mlp::cuda::refusal(problem, operand_type, backward, device);
  if (!reason.empty()) return reason;
  const int32_t limit = field_mlp::cuda::shared_limit(device);
  const auto plan = with_operand(
      operand_type, [&](auto op) { return Renderer<decltype(op)>::plan(field, limit); });
  if (plan.bytes <= limit) return "";
  return "it needs " + std::to_string(plan.bytes) + " bytes of shared memory, and the device has " +
         std::to_string(limit);
}

void forward(const Batch& batch, const Occupancy& occupancy, const void* weights,
             const float* origins, const float* directions, float* out, float* values,
             Launch launch) {
  with_operand(batch.operand_type, [&](auto op) {
    Renderer<decltype(op)>::render(batch, occupancy, weights, rays_of(batch, origins, directions),
                                   out, values, launch);
  });
}

BackwardSizes backward_sizes(const Batch& batch, int device) {
  return with_operand(batch.operand_type, [&](auto op) {
    return Launcher<decltype(op)>::backward_sizes(batch.problem.field, batch.batch,
                                                  batch.rays * batch.rendering.samples, device);
  });
}

void backward(const Batch& batch, const BackwardSizes& sizes, const void* weights,
              const float* origins, const float* directions, const float* values,
              const float* grad, float* grad_values, float* partial, void* workspace,
              Launch launch) {
  const int64_t rays = batch.batch * batch.rays;
  const Samples in = {rays,       values,          nullptr,      nullptr,
                      directions, batch.rendering, batch.numbers};
  field_mlp::cuda::check(cudaSetDevice(launch.device));
  start(composite_backward_kernel, composite_grid(rays), kCompositeWarps * kWarp, 0, launch, in,
        grad, SampleGrads{grad_values, nullptr, nullptr});
  with_operand(batch.operand_type, [&](auto op) {
    Launcher<decltype(op)>::backward(batch.problem, batch.weight_type, weights,
                                     rays_of(batch, origins, directions), sizes, grad_values,
                                     partial, nullptr, workspace, launch);
  });
}

void composite(const Values& values, float* out, Launch launch) {
  field_mlp::cuda::check(cudaSetDevice(launch.device));
  start(composite_kernel, composite_grid(values.rays), kCompositeWarps * kWarp, 0, launch,
        samples_of(values), out);
}

void composite_backward(const Values& values, const float* grad, float* grad_values, float* grad_t,
                        float* grad_scale, Launch launch) {
  field_mlp::cuda::check(cudaSetDevice(launch.device));
  start(composite_backward_kernel, composite_grid(values.rays), kCompositeWarps * kWarp, 0, launch,
        samples_of(values), grad, SampleGrads{grad_values, grad_t, grad_scale});
}

}  // namespace cuda
}  // namespace volume_render
}  // namespace ginr
