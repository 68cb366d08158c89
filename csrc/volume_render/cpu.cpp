#include "volume_render/cpu.h"

#include <algorithm>

#include "common/parallel.h"
#include "common/scratch.h"
#include "field_mlp/cpu.h"
#include "field_mlp/packed_weights.h"

namespace ginr {
namespace volume_render {
namespace cpu {
namespace {

// Samples of a task: enough work to hide handing it out.
constexpr int64_t kTaskSamples = 2048;
// Neighbouring rays share what a block of the sparse renderer is filled from.
constexpr int64_t kSparseSamples = 1 << 14;

using field_mlp::cpu::Instances;
using field_mlp::cpu::PackedWeights;

thread_local Scratch t_scratch;

int64_t divided(int64_t count, int64_t by) { return (count + by - 1) / by; }

int64_t task_rays(int64_t samples, int64_t of_task, int64_t together) {
  return divided(std::max<int64_t>(1, of_task / samples), together) * together;
}

}  // namespace

void forward(const Batch& batch, const Occupancy& occupancy, const float* weights,
             const float* origins, const float* directions, float* out, int threads) {
  const Field& field = batch.field;
  const int64_t samples = batch.rendering.samples;
  const bool sparse = occupancy.bits != nullptr;
  const int64_t together = rays_together(samples, kForwardRays);
  const int64_t rays = task_rays(samples, sparse ? kSparseSamples : kTaskSamples, together);
  const int64_t tasks = divided(batch.rays, rays);
  field_mlp::cpu::over_weights(field, weights, batch.batch, batch.rays * samples, false, threads,
                               batch.batch,
                               [&](const Instances& some, const PackedWeights& packed) {
    parallel_for(some.count * tasks, threads, [&](int64_t index) {
      const int64_t b = some.first + index / tasks, first = index % tasks * rays;
      const int64_t ray = b * batch.rays + first;
      RenderTask task;
      task.field = field;
      task.frequencies = batch.frequencies;
      task.rendering = batch.rendering;
      task.weights = packed.of(b);
      task.origins = origins + 3 * ray;
      task.directions = directions + 3 * ray;
      task.first_ray = batch.numbers.of(b, ray);
      task.rays = std::min(rays, batch.rays - first);
      task.out = out + ray * (field.out_dim + 1);
      if (sparse) {
        task.scratch = t_scratch.floats(render_sparse_floats(field, samples, rays));
        GINR_SIMD_CALL(render_forward_sparse, task, occupancy,
                       occupancy.bits + b * occupancy.words);
      } else {
        task.scratch = t_scratch.floats(render_floats(field, samples));
        GINR_SIMD_CALL(render_forward, task);
      }
    });
  });
}

void backward(const Batch& batch, const float* weights, const float* origins,
              const float* directions, const float* grad, float* grad_weights, float* grad_origins,
              float* grad_directions, int threads) {
  const Field& field = batch.field;
  const int64_t parameters = field.parameters(), samples = batch.rendering.samples;
  const int64_t together = rays_together(samples, kBackwardRays);
  const int64_t parts = field_mlp::cpu::gradient_parts(
      batch.batch, batch.rays, parameters, std::max<int64_t>(together, 256 / samples));
  const int64_t rays = divided(divided(batch.rays, parts), together) * together;
  static thread_local Scratch t_sums;
  float* sums = grad_weights;
  if (grad_weights != nullptr && parts > 1) {
    sums = t_sums.floats(batch.batch * parts * parameters);
  }
  field_mlp::cpu::over_weights(field, weights, batch.batch, batch.rays * samples, true, threads,
                               batch.batch,
                               [&](const Instances& some, const PackedWeights& packed) {
    parallel_for(some.count * parts, threads, [&](int64_t index) {
      const int64_t b = some.first + index / parts;
      const int64_t first = std::min(batch.rays, index % parts * rays);
      const int64_t ray = b * batch.rays + first;
      RenderGradTask task;
      task.field = field;
      task.frequencies = batch.frequencies;
      task.rendering = batch.rendering;
      task.weights = packed.of(b);
      task.origins = origins + 3 * ray;
      task.directions = directions + 3 * ray;
      task.first_ray = batch.numbers.of(b, ray);
      task.rays = std::min(rays, batch.rays - first);
      task.grad = grad + ray * (field.out_dim + 1);
      task.grad_weights =
          sums == nullptr ? nullptr : sums + (some.first * parts + index) * parameters;
      task.grad_origins = grad_origins == nullptr ? nullptr : grad_origins + 3 * ray;
      task.grad_directions = grad_directions == nullptr ? nullptr : grad_directions + 3 * ray;
      task.scratch = t_scratch.floats(render_grad_floats(field, samples));
      if (sums != nullptr) std::fill_n(task.grad_weights, parameters, 0.0f);
      GINR_SIMD_CALL(render_backward, task);
    });
  });
  if (grad_weights != nullptr && parts > 1) {
    field_mlp::cpu::sum_parts(sums, batch.batch, parts, parameters, grad_weights, threads);
  }
}

void composite(const CompositeTask& all, int threads) {
  const int64_t samples = all.rendering.samples, rays = task_rays(samples, kTaskSamples * 4, 1);
  parallel_for(divided(all.rays, rays), threads, [&](int64_t index) {
    CompositeTask task = all;
    const int64_t first = index * rays;
    task.rays = std::min(rays, all.rays - first);
    task.values += first * samples * (all.channels + 1);
    task.positions += first * samples;
    task.scales += first;
    task.out += first * (all.channels + 2);
    task.scratch = t_scratch.floats(composite_floats(all.channels, samples));
    GINR_SIMD_CALL(composite_forward, task);
  });
}

void composite_backward(const CompositeGradTask& all, int threads) {
  const int64_t samples = all.rendering.samples, rays = task_rays(samples, kTaskSamples * 4, 1);
  parallel_for(divided(all.rays, rays), threads, [&](int64_t index) {
    CompositeGradTask task = all;
    const int64_t first = index * rays;
    task.rays = std::min(rays, all.rays - first);
    task.values += first * samples * (all.channels + 1);
    task.positions += first * samples;
    task.scales += first;
    task.grad += first * (all.channels + 2);
    task.grad_values += first * samples * (all.channels + 1);
    task.grad_positions += first * samples;
    task.grad_scales += first;
    task.scratch = t_scratch.floats(composite_floats(all.channels, samples));
    GINR_SIMD_CALL(composite_backward, task);
  });
}

}  // namespace cpu
}  // namespace volume_render
}  // namespace ginr
