// The kernels of volume_render; formula.h has the formula.
#pragma once

#include "field_mlp/cuda_kernels.cuh"
#include "volume_render/formula.h"
#include "volume_render/occupancy.h"

namespace ginr {
namespace volume_render {
namespace cuda {

using namespace ginr::device;
using field_mlp::cuda::hidden_activations;
using field_mlp::cuda::Instance;
using field_mlp::cuda::KeepNothing;
using field_mlp::cuda::kForwardBlocks;
using field_mlp::cuda::kForwardWarps;
using field_mlp::cuda::last_layer;
using field_mlp::cuda::load_field;
using field_mlp::cuda::Network;
using field_mlp::cuda::position;
using field_mlp::cuda::ray_position;
using field_mlp::cuda::Shape;
using field_mlp::cuda::Source;

constexpr int kQueue = 2 * kWarp;  // samples a warp has waiting: those of a call, and a warp's more
constexpr int kRays = kWarp;       // rays a warp works on at most, one for each lane

constexpr int kValues = 4;   // of the field: colour and density
constexpr int kResults = 5;  // of a ray: colour, opacity, depth

struct Sums {
  float color[3], opacity, depth;
};

GINR_DEVICE Sums operator+(const Sums& a, const Sums& b) {
  return {{a.color[0] + b.color[0], a.color[1] + b.color[1], a.color[2] + b.color[2]},
          a.opacity + b.opacity,
          a.depth + b.depth};
}

GINR_DEVICE Sums shuffle_up(const Sums& a, int lanes) {
  Sums b;
  for (int i = 0; i < 3; ++i) b.color[i] = __shfl_up_sync(kAll, a.color[i], lanes);
  b.opacity = __shfl_up_sync(kAll, a.opacity, lanes);
  b.depth = __shfl_up_sync(kAll, a.depth, lanes);
  return b;
}

GINR_DEVICE void store(const Sums& sums, bool white, float* out) {
  for (int i = 0; i < 3; ++i) out[i] = sums.color[i] + (white ? 1.0f - sums.opacity : 0.0f);
  out[3] = sums.opacity;
  out[4] = sums.depth;
}

// What a warp keeps in shared memory.
struct WarpState {
  float t[kQueue], interval[kQueue];  // of the samples waiting, in order along each ray
  int ray[kQueue], index[kQueue];     // which of the warp's rays, which of the ray's samples
  float values[kWarp][kValues];       // of the samples at hand
  float transmittance[kRays];
  Sums sums[kRays];
};

// What of its rays a warp has put into its queue.
struct Progress {
  int64_t first;     // the warp's first ray, counted through the batch
  int rays;          // how many it has
  int ray, sample;   // where it goes on
  int waiting;       // samples in the queue
};

// t of sample k and the length of its interval, without the ray's scale.
GINR_DEVICE float interval(const Rendering& rendering, uint64_t ray, int64_t k, float t) {
  return k + 1 == rendering.samples ? rendering.last_interval
                                    : ray_position(rendering, ray, k + 1) - t;
}

// Puts samples that may have density into the queue until `wanted` wait or the rays are through.
GINR_DEVICE void fill_queue(const Source& source, const Occupancy& grid, int64_t b, int wanted,
                            WarpState& state, Progress& progress) {
  const Rendering& rendering = source.rendering;
  const int samples = static_cast<int>(rendering.samples);
  const uint32_t* bits = grid.bits + (grid.bits == nullptr ? 0 : b * grid.words);
  while (progress.waiting < wanted && progress.ray < progress.rays) {
    const int64_t ray = progress.first + progress.ray;
    const int k = progress.sample + lane();
    bool take = k < samples;
    float t = 0.0f, gap = 0.0f;
    if (take) {
      const uint64_t number = source.numbers.of(b, ray);
      t = ray_position(rendering, number, k);
      gap = interval(rendering, number, k, t);
      if (grid.bits != nullptr && gap < kEndlessInterval) {
        const float x[3] = {position(source, ray, t, 0), position(source, ray, t, 1),
                            position(source, ray, t, 2)};
        take = grid.may_hold(bits, x);
      }
    }
    const unsigned taken = __ballot_sync(kAll, take);
    if (take) {
      const int at = progress.waiting + __popc(taken & ((1u << lane()) - 1u));
      state.t[at] = t;
      state.interval[at] = gap * ray_scale(rendering, source.directions + 3 * ray);
      state.ray[at] = progress.ray;
      state.index[at] = k;
    }
    progress.waiting += __popc(taken);
    progress.sample += kWarp;
    if (progress.sample >= samples || state.transmittance[progress.ray] < grid.stop) {
      progress.sample = 0;
      ++progress.ray;
    }
  }
  __syncwarp();
}

// Composites the first `count` samples of the queue: products and sums along each ray by scans.
GINR_DEVICE void composite_queue(const Rendering& rendering, int count, WarpState& state) {
  const int mine = lane();
  const bool inside = mine < count;
  const int ray = inside ? state.ray[mine] : -1;
  float gap = 1.0f, passed = 1.0f;  // 1 - e_k, and e_k + epsilon
  const float* value = state.values[mine];
  if (inside) {
    const float density = density_of(rendering.density, value[3]);
    const float e = expf(-density * state.interval[mine]);
    gap = 1.0f - e;
    passed = e + rendering.epsilon;
  }
  for (int step = 1; step < kWarp; step *= 2) {
    const float before = __shfl_up_sync(kAll, passed, step);
    const int other = __shfl_up_sync(kAll, ray, step);
    if (mine >= step && other == ray) passed *= before;
  }
  const float before = __shfl_up_sync(kAll, passed, 1);
  const int ray_before = __shfl_up_sync(kAll, ray, 1), ray_after = __shfl_down_sync(kAll, ray, 1);
  const bool opens = mine == 0 || ray_before != ray;
  const bool closes = inside && (mine + 1 == count || ray_after != ray);
  Sums sums = {};
  if (inside) {
    const float weight = state.transmittance[ray] * (opens ? 1.0f : before) * gap;
    for (int i = 0; i < 3; ++i) sums.color[i] = weight * color_of(rendering.color, value[i]);
    sums.opacity = weight;
    sums.depth = weight * state.t[mine];
  }
  for (int step = 1; step < kWarp; step *= 2) {
    const Sums more = shuffle_up(sums, step);
    const int other = __shfl_up_sync(kAll, ray, step);
    if (mine >= step && other == ray) sums = sums + more;
  }
  __syncwarp();
  if (closes) {
    state.transmittance[ray] *= passed;
    state.sums[ray] = state.sums[ray] + sums;
  }
}

// Drops the first `count` samples of the queue.
GINR_DEVICE void advance_queue(int count, WarpState& state, Progress& progress) {
  progress.waiting -= count;
  const int from = count + lane();
  const bool moves = lane() < progress.waiting;
  float t = 0.0f, gap = 0.0f;
  int ray = 0, index = 0;
  if (moves) {
    t = state.t[from];
    gap = state.interval[from];
    ray = state.ray[from];
    index = state.index[from];
  }
  __syncwarp();
  if (moves) {
    state.t[lane()] = t;
    state.interval[lane()] = gap;
    state.ray[lane()] = ray;
    state.index[lane()] = index;
  }
  __syncwarp();
}

// The field at the first `count` samples of the queue, into state.values.
template <class Op, int W>
GINR_DEVICE void evaluate_queue(const Instance& instance, const Source& source, int64_t first_ray,
                                int count, float* x, WarpState& state) {
  using S = Shape<Op, W>;
  if (lane() < S::rows) {
    const bool inside = lane() < count;
    const int64_t ray = first_ray + (inside ? state.ray[lane()] : 0);
    for (int i = 0; i < 3; ++i) {
      x[lane() * 3 + i] = inside ? position(source, ray, state.t[lane()], i) : 0.0f;
    }
  }
  __syncwarp();
  float c[S::tiles][8], slope[S::tiles][8];
  {
    typename S::Fragment a[S::pairs][S::tiles];
    hidden_activations<Op, W>(instance, x, KeepNothing(), a);
    last_layer<Op, W, false>(instance, a, c, slope);
  }
  if (fragment_column() < 4) {
#pragma unroll
    for (int m = 0; m < S::tiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        state.values[16 * m + field_mlp::cuda::element_row(i)][fragment_column() + (i & 1)] =
            c[m][i];
      }
    }
  }
  __syncwarp();
}

// out (B, N, 5); values (B, N, S, 4), of the field along the rays, for a backward, or null. A warp
// takes `rays` rays at a time; gridDim.y is the batch. Unless operand blocks are resident, the
// warps of a block evaluate together.
template <class Op, int W>
__global__ void __launch_bounds__(kForwardWarps<W>* kWarp, kForwardBlocks<Op, W>)
    render_kernel(const __grid_constant__ Network net, const __grid_constant__ Source source,
                  const __grid_constant__ Occupancy grid, int rays, float* out, float* values) {
  using S = Shape<Op, W>;
  const int b = blockIdx.y;
  const int samples = static_cast<int>(source.rendering.samples);
  const int of_instance = static_cast<int>(source.count / samples);
  const Instance instance{net, b * net.field.parameters()};
  load_field<Op, W, false>(instance);
  float* x = shared_at<float>(net.plan.coords) + warp() * S::rows * 3;
  WarpState& state = shared_at<WarpState>(net.plan.extra)[warp()];
  const int step = gridDim.x * kForwardWarps<W> * rays;
  for (int start = blockIdx.x * kForwardWarps<W> * rays; start < of_instance; start += step) {
    const int first = start + warp() * rays, left = of_instance - first;
    Progress progress = {static_cast<int64_t>(b) * of_instance + first,
                         left < 0 ? 0 : left < rays ? left : rays, 0, 0, 0};
    state.transmittance[lane()] = 1.0f;
    state.sums[lane()] = {};
    __syncwarp();
    while (true) {
      fill_queue(source, grid, b, S::rows, state, progress);
      const bool some = progress.waiting > 0;
      if (net.plan.resident ? !some : __syncthreads_or(some) == 0) break;
      const int count = progress.waiting < S::rows ? progress.waiting : S::rows;
      evaluate_queue<Op, W>(instance, source, progress.first, count, x, state);
      if (values != nullptr && lane() < count) {
        const int64_t ray = progress.first + state.ray[lane()];
        float* to = values + (ray * samples + state.index[lane()]) * kValues;
        for (int i = 0; i < kValues; ++i) to[i] = state.values[lane()][i];
      }
      composite_queue(source.rendering, count, state);
      __syncwarp();
      advance_queue(count, state, progress);
    }
    if (lane() < progress.rays) {
      store(state.sums[lane()], source.rendering.white_background,
            out + (progress.first + lane()) * kResults);
    }
    __syncwarp();
  }
}

}  // namespace cuda
}  // namespace volume_render
}  // namespace ginr
