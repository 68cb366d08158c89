#include "field_mlp/block.h"
#include "volume_render/job.h"
#include "volume_render/ray.h"

namespace ginr {
namespace GINR_SIMD {
namespace {

int64_t whole_blocks(int64_t samples) { return (samples + kSamples - 1) / kSamples; }

void fill(float* x, int64_t from, int64_t to) {
  for (int64_t i = from; i < to; ++i) x[i] = 0.0f;
}

// Positions, intervals and coordinates of a group of rays; the coordinates of block b are
// [3][kSamples] from coords + b * 3 * kSamples. What is left of the last block is 0.
void place_samples(const Rendering& r, const float* origins, const float* directions,
                   uint64_t first_ray, int64_t rays, const Samples& samples, float* coords) {
  const int64_t used = rays * r.samples, taken = whole_blocks(used) * kSamples;
  for (int64_t ray = 0; ray < rays; ++ray) {
    const float *o = origins + 3 * ray, *d = directions + 3 * ray;
    const int64_t at = ray * r.samples;
    ray_positions(r, first_ray + static_cast<uint64_t>(ray), samples.position + at);
    ray_intervals(r, ray_scale(r, d), samples.position + at, samples.interval + at,
                  samples.delta + at);
    for (int64_t i = at; i < at + r.samples; ++i) {
      float* to = coords + i / kSamples * 3 * kSamples + i % kSamples;
      for (int64_t c = 0; c < 3; ++c) to[c * kSamples] = o[c] + samples.position[i] * d[c];
    }
  }
  fill(samples.delta, used, taken);
  for (int64_t i = used; i < taken; ++i) {
    float* to = coords + i / kSamples * 3 * kSamples + i % kSamples;
    for (int64_t c = 0; c < 3; ++c) to[c * kSamples] = 0.0f;
  }
}

// Samples of a slab of the sparse renderer.
constexpr int64_t kSlab = 8;

}  // namespace

void render_forward(const RenderTask& task) {
  const Rendering& r = task.rendering;
  const Field& field = task.field;
  const int64_t channels = field.out_dim - 1;
  const int64_t together = rays_together(r.samples, kForwardRays);
  const int64_t row = kSamples * group_blocks(r.samples, kForwardRays);
  const Samples samples(task.scratch, row);
  float* coords = task.scratch + kRenderRows * row;
  float* values = coords + 3 * row;
  float* scratch = values + field.out_dim * row;
  for (int64_t first = 0; first < task.rays; first += together) {
    const int64_t rays = task.rays - first < together ? task.rays - first : together;
    place_samples(r, task.origins + 3 * first, task.directions + 3 * first,
                  task.first_ray + static_cast<uint64_t>(first), rays, samples, coords);
    for (int64_t b = 0; b < whole_blocks(rays * r.samples); ++b) {
      float* of_block = values + b * field.out_dim * kSamples;
      forward_block(field, task.frequencies, task.weights, {coords + b * 3 * kSamples}, of_block,
                    scratch);
      activate(r, channels, of_block, b * kSamples, samples);
    }
    for (int64_t ray = 0; ray < rays; ++ray) {
      composite_ray(r, channels, values, ray * r.samples, samples,
                    task.out + (first + ray) * (channels + 2));
    }
  }
}

void render_forward_sparse(const RenderTask& task, const Occupancy& occupancy,
                           const uint32_t* bits) {
  const Rendering& r = task.rendering;
  const Field& field = task.field;
  const int64_t channels = field.out_dim - 1, S = r.samples, rays = task.rays;
  // Arrays over all samples of the task, ray by ray.
  float* position = task.scratch;
  float* passed = position + rays * S;
  float* colors = passed + rays * S;  // (rays * S, channels)
  float* light = colors + rays * S * channels;
  float* queued = light + rays;
  queued += (kSamples - (queued - task.scratch) % kSamples) % kSamples;
  float* delta = queued + 3 * kSamples;
  float* sigma = delta + kSamples;
  float* values = sigma + 5 * kSamples;
  float* scratch = values + field.out_dim * kSamples;
  const Samples block(delta - 2 * kSamples, kSamples);  // delta, sigma and passed are used
  int64_t sample_of[kSamples], count = 0;

  const auto evaluate = [&] {
    for (int64_t i = count; i < kSamples; ++i) {
      for (int64_t c = 0; c < 3; ++c) queued[c * kSamples + i] = 0.0f;
      block.delta[i] = 0.0f;
    }
    forward_block(field, task.frequencies, task.weights, {queued}, values, scratch);
    activate(r, channels, values, 0, block);
    for (int64_t i = 0; i < count; ++i) {
      passed[sample_of[i]] = block.passed[i];
      for (int64_t c = 0; c < channels; ++c) {
        colors[sample_of[i] * channels + c] = values[c * kSamples + i];
      }
    }
    count = 0;
  };

  for (int64_t ray = 0; ray < rays; ++ray) {
    ray_positions(r, task.first_ray + static_cast<uint64_t>(ray), position + ray * S);
    light[ray] = 1.0f;
    for (int64_t c = 0; c < channels + 2; ++c) task.out[ray * (channels + 2) + c] = 0.0f;
  }
  for (int64_t i = 0; i < rays * S; ++i) passed[i] = 1.0f;
  // Front to back in slabs: what lies behind an opaque slab is never evaluated.
  for (int64_t from = 0; from < S; from += kSlab) {
    const int64_t to = from + kSlab < S ? from + kSlab : S;
    for (int64_t ray = 0; ray < rays; ++ray) {
      if (light[ray] < occupancy.stop) continue;
      const float *o = task.origins + 3 * ray, *d = task.directions + 3 * ray;
      const float scale = ray_scale(r, d);
      float start[3], slope[3];  // the ray in cells of the grid
      for (int i = 0; i < 3; ++i) {
        start[i] = occupancy.in_cells(o[i], occupancy.low[i], i);
        slope[i] = occupancy.in_cells(d[i], 0.0f, i);
      }
      for (int64_t k = from; k < to; ++k) {
        const float t = position[ray * S + k];
        const float at[3] = {start[0] + t * slope[0], start[1] + t * slope[1],
                             start[2] + t * slope[2]};
        const float interval = k + 1 < S ? position[ray * S + k + 1] - t : r.last_interval;
        if (interval < kEndlessInterval && !occupancy.may_hold_cell(bits, at)) continue;
        for (int64_t c = 0; c < 3; ++c) queued[c * kSamples + count] = o[c] + t * d[c];
        block.delta[count] = interval * scale;
        sample_of[count] = ray * S + k;
        if (++count == kSamples) evaluate();
      }
    }
    if (count > 0) evaluate();
    for (int64_t ray = 0; ray < rays; ++ray) {
      float* out = task.out + ray * (channels + 2);
      for (int64_t i = ray * S + from; i < ray * S + to; ++i) {
        if (passed[i] == 1.0f) {  // nothing there, or skipped
          light[ray] *= 1.0f + r.epsilon;
          continue;
        }
        const float weight = light[ray] * (1.0f - passed[i]);
        for (int64_t c = 0; c < channels; ++c) out[c] += weight * colors[i * channels + c];
        out[channels] += weight;
        out[channels + 1] += weight * position[i];
        light[ray] *= passed[i] + r.epsilon;
      }
    }
  }
  if (!r.white_background) return;
  for (int64_t ray = 0; ray < rays; ++ray) {
    float* out = task.out + ray * (channels + 2);
    for (int64_t c = 0; c < channels; ++c) out[c] += 1.0f - out[channels];
  }
}

void render_backward(const RenderGradTask& task) {
  const Rendering& r = task.rendering;
  const Field& field = task.field;
  const int64_t channels = field.out_dim - 1, out_block = field.out_dim * kSamples;
  const int64_t together = rays_together(r.samples, kBackwardRays);
  const int64_t blocks = group_blocks(r.samples, kBackwardRays), row = kSamples * blocks;
  const Samples samples(task.scratch, row);
  float* coords = task.scratch + kRenderRows * row;
  float* grad_coords = coords + 3 * row;
  float* values = grad_coords + 3 * row;
  float* slopes = values + blocks * out_block;
  float* grads = slopes + blocks * out_block;
  float* kept = grads + blocks * out_block;
  float* scratch = kept + blocks * kept_floats(field);
  float* out = scratch;  // of a ray, not needed
  for (int64_t first = 0; first < task.rays; first += together) {
    const int64_t rays = task.rays - first < together ? task.rays - first : together;
    const int64_t used = rays * r.samples, taken = whole_blocks(used);
    const float *origins = task.origins + 3 * first, *directions = task.directions + 3 * first;
    place_samples(r, origins, directions, task.first_ray + static_cast<uint64_t>(first), rays,
                  samples, coords);
    fill(grads, 0, taken * out_block);
    for (int64_t b = 0; b < taken; ++b) {
      forward_block_keeping(field, task.frequencies, task.weights, {coords + b * 3 * kSamples},
                            values + b * out_block, slopes + b * out_block,
                            {field, kept + b * kept_floats(field)}, scratch);
    }
    for (int64_t b = 0; b < taken; ++b) {
      activate(r, channels, values + b * out_block, b * kSamples, samples);
    }
    float scale_grads[kBackwardRays];
    for (int64_t ray = 0; ray < rays; ++ray) {
      const int64_t at = ray * r.samples;
      composite_ray(r, channels, values, at, samples, out);
      scale_grads[ray] = composite_ray_backward(
          r, channels, values, at, samples, 1.0f,
          task.grad + (first + ray) * (channels + 2), grads, nullptr);
    }
    for (int64_t b = 0; b < taken; ++b) {
      activate_backward(r, channels, values + b * out_block, grads + b * out_block);
      backward_block(field, task.frequencies, task.weights, {coords + b * 3 * kSamples},
                     slopes + b * out_block, {field, kept + b * kept_floats(field)},
                     grads + b * out_block, task.grad_weights, nullptr,
                     task.grad_origins == nullptr ? nullptr : grad_coords + b * 3 * kSamples,
                     scratch);
    }
    if (task.grad_origins == nullptr) continue;
    for (int64_t ray = 0; ray < rays; ++ray) {
      const float scale = ray_scale(r, directions + 3 * ray);
      for (int64_t c = 0; c < 3; ++c) {
        float of_origin = 0.0f, of_direction = 0.0f;
        for (int64_t i = ray * r.samples; i < (ray + 1) * r.samples; ++i) {
          const float g = grad_coords[(i / kSamples * 3 + c) * kSamples + i % kSamples];
          of_origin += g;
          of_direction += samples.position[i] * g;
        }
        // d|d|/dd is d/|d|, and 0 at 0 as for torch's norm.
        if (r.scale_by_norm && scale > 0.0f) {
          of_direction += scale_grads[ray] * directions[3 * ray + c] / scale;
        }
        task.grad_origins[3 * (first + ray) + c] = of_origin;
        task.grad_directions[3 * (first + ray) + c] = of_direction;
      }
    }
  }
}

namespace {

// Loads and activates the samples of `rays` rays from `first` on, which fill blocks together.
void load_rays(const Rendering& r, int64_t channels, const float* values, const float* positions,
               const float* scales, int64_t rays, const Samples& samples, float* blocks) {
  const int64_t out_dim = channels + 1, used = rays * r.samples;
  for (int64_t ray = 0; ray < rays; ++ray) {
    const int64_t at = ray * r.samples;
    for (int64_t k = at; k < at + r.samples; ++k) samples.position[k] = positions[k];
    ray_intervals(r, scales[ray], samples.position + at, samples.interval + at,
                  samples.delta + at);
  }
  fill(samples.delta, used, whole_blocks(used) * kSamples);
  for (int64_t i = 0; i < used; i += kSamples) {
    float* of_block = blocks + i * out_dim;
    gather(values + i * out_dim, out_dim, used - i < kSamples ? used - i : kSamples, of_block);
    activate(r, channels, of_block, i, samples);
  }
}

}  // namespace

void composite_forward(const CompositeTask& task) {
  const Rendering& r = task.rendering;
  const int64_t out_dim = task.channels + 1, S = r.samples;
  const int64_t together = rays_together(S, kForwardRays);
  const int64_t row = kSamples * group_blocks(S, kForwardRays);
  const Samples samples(task.scratch, row);
  float* blocks = task.scratch + kRenderRows * row;
  for (int64_t first = 0; first < task.rays; first += together) {
    const int64_t rays = task.rays - first < together ? task.rays - first : together;
    load_rays(r, task.channels, task.values + first * S * out_dim, task.positions + first * S,
              task.scales + first, rays, samples, blocks);
    for (int64_t ray = 0; ray < rays; ++ray) {
      composite_ray(r, task.channels, blocks, ray * S, samples,
                    task.out + (first + ray) * (task.channels + 2));
    }
  }
}

void composite_backward(const CompositeGradTask& task) {
  const Rendering& r = task.rendering;
  const int64_t out_dim = task.channels + 1, S = r.samples;
  const int64_t together = rays_together(S, kForwardRays);
  const int64_t row = kSamples * group_blocks(S, kForwardRays);
  const Samples samples(task.scratch, row);
  float* blocks = task.scratch + kRenderRows * row;
  float* grads = blocks + out_dim * row;
  for (int64_t first = 0; first < task.rays; first += together) {
    const int64_t rays = task.rays - first < together ? task.rays - first : together;
    load_rays(r, task.channels, task.values + first * S * out_dim, task.positions + first * S,
              task.scales + first, rays, samples, blocks);
    fill(grads, 0, out_dim * row);
    for (int64_t ray = 0; ray < rays; ++ray) {
      float light = 1.0f;
      for (int64_t i = ray * S; i < (ray + 1) * S; ++i) {
        samples.light[i] = light;
        light *= samples.passed[i] + r.epsilon;
      }
      float* of_position = task.grad_positions + (first + ray) * S;
      fill(of_position, 0, S);
      task.grad_scales[first + ray] = composite_ray_backward(
          r, task.channels, blocks, ray * S, samples, task.scales[first + ray],
          task.grad + (first + ray) * (task.channels + 2), grads, of_position);
    }
    const int64_t used = rays * S;
    for (int64_t i = 0; i < used; i += kSamples) {
      activate_backward(r, task.channels, blocks + i * out_dim, grads + i * out_dim);
      scatter(grads + i * out_dim, out_dim, used - i < kSamples ? used - i : kSamples,
              task.grad_values + (first * S + i) * out_dim);
    }
  }
}

}  // namespace GINR_SIMD
}  // namespace ginr
