// The kernels of field_mlp. A block evaluates samples of one instance; gridDim.y is the batch.
#pragma once

#include <type_traits>

#include "field_mlp/cuda_backward.cuh"
#include "volume_render/formula.h"

namespace ginr {
namespace field_mlp {
namespace cuda {

// Where the samples of a launch come from: points, or the samples along rays, ray by ray.
struct Source {
  int64_t batch;
  int64_t count;       // samples of an instance
  const float* coords;  // (B, count, d), (1, count, d) if shared; null: rays
  bool shared;
  const float* origins;        // (B, N, 3), count = N S
  const float* directions;     // (B, N, 3)
  RayNumbers numbers;
  Rendering rendering;
};

// t_k of the ray of a number, as sample_position has it: an array indexed at run time would not be
// in registers.
GINR_DEVICE float ray_position(const Rendering& rendering, uint64_t ray, int64_t k) {
  if (rendering.jitter == Jitter::none) return regular_position(rendering, k);
  uint32_t word[4];
  random_words(rendering.seed, ray, static_cast<uint32_t>(k / 4), word);
  const int which = static_cast<int>(k % 4);
  const uint32_t low = which == 0 ? word[0] : word[1], high = which == 2 ? word[2] : word[3];
  return jittered_position(rendering, k, unit_interval(which < 2 ? low : high));
}

// Component i of a sample, which is sample k at t of a ray if there are rays.
GINR_DEVICE float position(const Source& source, int64_t ray, float t, int i) {
  return fmaf(t, source.directions[3 * ray + i], source.origins[3 * ray + i]);
}

// Coordinates of samples first .. first + rows - 1 of an instance to x [rows][d]; 0 past the end.
GINR_DEVICE void load_coords(const Source& source, int64_t b, int64_t first, int rows, int d,
                             float* x) {
  __syncwarp();
  for (int r = lane(); r < rows; r += kWarp) {
    const int64_t sample = first + r;
    const bool inside = sample < source.count;
    if (source.coords != nullptr || !inside) {
      const float* from = source.coords + ((source.shared ? 0 : b * source.count) + sample) * d;
      for (int i = 0; i < d; ++i) x[r * d + i] = inside ? from[i] : 0.0f;
    } else {
      const int64_t samples = source.rendering.samples;
      const int64_t ray = b * (source.count / samples) + sample / samples;
      const uint64_t number = source.numbers.of(b, ray);
      const float t = ray_position(source.rendering, number, sample % samples);
      for (int i = 0; i < 3; ++i) x[r * d + i] = position(source, ray, t, i);
    }
  }
  __syncwarp();
}

// Warps of a forward block, and the blocks that a multiprocessor should have registers for.
template <int W>
constexpr int kForwardWarps = W == 128 ? 8 : 4;
template <class Op, int W>
constexpr int kForwardBlocks = W == 128 ? 1 : Op::kWide ? 2 : 3;

constexpr int kPackWarps = 8;
template <class Op, int W>
constexpr int kBackwardWarps = Op::kWide && W == 128 ? 4 : 8;

// What a backward has registers for.
template <class Op, int W>
using BackwardOp = std::conditional_t<Op::kWide || W == 128, Thin<Op>, Op>;

// out (B, count, out_dim)
template <class Op, int W>
__global__ void __launch_bounds__(kForwardWarps<W>* kWarp, kForwardBlocks<Op, W>)
    forward_kernel(const __grid_constant__ Network net, const __grid_constant__ Source source,
                   float* out) {
  using S = Shape<Op, W>;
  const int64_t b = blockIdx.y;
  const Instance instance{net, b * net.field.parameters()};
  load_field<Op, W, false>(instance);
  const int d = static_cast<int>(net.field.coord_dim), dims = static_cast<int>(net.field.out_dim);
  float* x = shared_at<float>(net.plan.coords) + warp() * S::rows * d;
  constexpr int kSamples = kForwardWarps<W> * S::rows;
  for (int64_t start = static_cast<int64_t>(blockIdx.x) * kSamples; start < source.count;
       start += static_cast<int64_t>(gridDim.x) * kSamples) {
    const int64_t first = start + warp() * S::rows;
    load_coords(source, b, first, S::rows, d, x);
    float c[S::tiles][8], slope[S::tiles][8];
    {
      typename S::Fragment a[S::pairs][S::tiles];
      hidden_activations<Op, W>(instance, x, KeepNothing(), a);
      last_layer<Op, W, false>(instance, a, c, slope);
    }
#pragma unroll
    for (int m = 0; m < S::tiles; ++m) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int64_t sample = first + 16 * m + element_row(i);
        const int column = element_column(i);
        if (sample < source.count && column < dims) {
          out[(b * source.count + sample) * dims + column] = c[m][i];
        }
      }
    }
  }
}

// Packs the operand blocks of a backward in which they take turns. Grid: (places, B).
template <class Op, int W>
__global__ void __launch_bounds__(kPackWarps* kWarp)
    pack_kernel(const __grid_constant__ Network net, uint4* packed) {
  const Plan& plan = net.plan;
  const int64_t b = blockIdx.y;
  const Instance instance{net, b * net.field.parameters()};
  const int place = blockIdx.x;
  uint4* to = packed + (b * plan.places() + place) * (plan.slot_bytes / 16);
  if (place < plan.blocks) {
    pack_operand<Op, false>(instance.block<W>(place), W / 16, W / 16, to);
  } else {
    pack_operand<typename Op::Back, true>(instance.block<W>(place - plan.blocks), W / 16, W / 16,
                                          to);
  }
}

// grad (B, count, out_dim) -> partial (blocks, B, P), whose sum over blocks is the gradient of the
// weights, and grad_coords (B, count, d); either may be null. `kept` is the workspace for kept
// activations, blocks x B x plan.kept_packets, unless they are in shared memory.
template <class Op, int W>
__global__ void __launch_bounds__(kBackwardWarps<Op, W> * kWarp, 1)
    backward_kernel(const __grid_constant__ Network net, const __grid_constant__ Source source,
                    const float* grad, float* partial, float* grad_coords, uint4* kept) {
  using S = Shape<Op, W>;
  const int64_t b = blockIdx.y;
  const int64_t block_index = blockIdx.x * source.batch + b;
  const Plan& plan = net.plan;
  const int64_t parameters = net.field.parameters();
  const Instance instance{net, b * parameters};
  load_field<Op, W, true>(instance);
  const int d = static_cast<int>(net.field.coord_dim), dims = static_cast<int>(net.field.out_dim);
  float* x = shared_at<float>(plan.coords) + warp() * S::rows * d;
  constexpr int kSamples = kBackwardWarps<Op, W> * S::rows;
  BackwardBlock block;
  block.partial = partial == nullptr ? nullptr : partial + block_index * parameters;
  block.kept = plan.kept_shared ? shared_at<uint4>(plan.kept)
                                : kept + block_index * plan.kept_packets;
  block.first = true;
  for (int64_t start = static_cast<int64_t>(blockIdx.x) * kSamples; start < source.count;
       start += static_cast<int64_t>(gridDim.x) * kSamples) {
    const int64_t first = start + warp() * S::rows;
    const int64_t left = source.count - first;
    block.count = static_cast<int>(left < 0 ? 0 : left < S::rows ? left : S::rows);
    block.grad = grad + (b * source.count + first) * dims;
    block.grad_coord =
        grad_coords == nullptr ? nullptr : grad_coords + (b * source.count + first) * d;
    load_coords(source, b, first, S::rows, d, x);
    backward_samples<Op, W>(instance, block, x);
    block.first = false;
  }
}

}  // namespace cuda
}  // namespace field_mlp
}  // namespace ginr
