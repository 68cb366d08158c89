// From sizes to launches of the rendering kernel.
#pragma once

#include "field_mlp/cuda_launch.cuh"
#include "volume_render/cuda.h"
#include "volume_render/cuda_kernels.cuh"

namespace ginr {
namespace volume_render {
namespace cuda {

// The launches of one type of operand; each is compiled in a source of its own.
template <class Op>
struct Renderer {
  static field_mlp::cuda::Plan plan(const Field& field, int32_t limit);
  static void render(const Batch& batch, const Occupancy& occupancy, const void* weights,
                     const Source& source, float* out, float* values, Launch launch);
};

template <class Op>
field_mlp::cuda::Plan Renderer<Op>::plan(const Field& field, int32_t limit) {
  return field_mlp::cuda::with_width(field, [&](auto width) {
    constexpr int W = decltype(width)::value;
    return field_mlp::cuda::make_plan(
        field, field_mlp::cuda::sizes_of<Op, W>(kForwardWarps<W>), false,
        kForwardWarps<W> * static_cast<int32_t>(sizeof(WarpState)), limit);
  });
}

template <class Op>
void Renderer<Op>::render(const Batch& batch, const Occupancy& occupancy, const void* weights,
                          const Source& source, float* out, float* values, Launch launch) {
  using namespace field_mlp::cuda;
  const Plan plan = Renderer::plan(batch.problem.field, shared_limit(launch.device));
  with_width(batch.problem.field, [&](auto width) {
    constexpr int W = decltype(width)::value;
    constexpr int kThreads = kForwardWarps<W> * kWarp;
    const int64_t at_once =
        blocks_at_once(render_kernel<Op, W>, kThreads, plan.bytes, launch.device);
    // As many rays a warp as leave work for every warp; those of a launch share its padding.
    const int64_t warps = std::max<int64_t>(1, at_once / batch.batch) * kForwardWarps<W>;
    const int64_t rays = std::min<int64_t>(kRays, divided(batch.rays, warps));
    const int64_t blocks =
        blocks_for(at_once, batch.batch, divided(batch.rays, kForwardWarps<W> * rays));
    start(render_kernel<Op, W>, dim3(blocks, batch.batch), kThreads, plan.bytes, launch,
          make_network(batch.problem, batch.weight_type, weights, plan), source, occupancy,
          static_cast<int>(rays), out, values);
  });
}

// Instantiated in cuda_float32.cu, cuda_float16.cu and cuda_bfloat16.cu.
#ifndef GINR_CUDA_EMULATION
extern template struct Renderer<Operand32>;
extern template struct Renderer<Operand16<false>>;
extern template struct Renderer<Operand16<true>>;
#endif

}  // namespace cuda
}  // namespace volume_render
}  // namespace ginr
