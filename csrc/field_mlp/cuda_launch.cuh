// From sizes to launches, for the kernels of field_mlp and volume_render.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "field_mlp/cuda.h"
#include "field_mlp/cuda_kernels.cuh"

namespace ginr {
namespace field_mlp {
namespace cuda {

inline void check(cudaError_t status) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("field_mlp: CUDA: ") + cudaGetErrorString(status));
  }
}

inline int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

inline int32_t shared_limit(int device) {
  return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

template <class Op, int W>
KernelSizes sizes_of(int warps) {
  return {W, warps, Shape<Op, W>::rows, Op::kPackets, Op::Back::kPackets, Op::Back::kWords};
}

// The field of a problem, with its weights, as kernels take it.
inline Network make_network(const Problem& problem, int weight_type, const void* weights,
                            const Plan& plan) {
  Network net = {};
  net.field = problem.field;
  net.plan = plan;
  net.weights = weights;
  net.number = static_cast<Number>(weight_type);
  std::copy(problem.high.begin(), problem.high.end(), net.high);
  std::copy(problem.low.begin(), problem.low.end(), net.low);
  return net;
}

// How many blocks of a kernel the device runs at a time.
template <class... Parameters>
int64_t blocks_at_once(void (*kernel)(Parameters...), int threads, int32_t bytes, int device) {
  check(cudaSetDevice(device));
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  int each = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, bytes));
  return static_cast<int64_t>(std::max(each, 1)) *
         attribute(cudaDevAttrMultiProcessorCount, device);
}

// Blocks for each instance: as many as run at a time, none of them without work.
inline int64_t blocks_for(int64_t at_once, int64_t batch, int64_t tasks) {
  return std::max<int64_t>(1, std::min(at_once / std::max<int64_t>(batch, 1), tasks));
}

template <class... Parameters, class... Arguments>
void start(void (*kernel)(Parameters...), dim3 grid, int threads, int32_t bytes,
           const Launch& launch, Arguments&&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = bytes;
  config.stream = reinterpret_cast<cudaStream_t>(launch.stream);
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
}

inline int64_t divided(int64_t count, int64_t by) { return (count + by - 1) / by; }

// Calls run(std::integral_constant<int, W>()) with the padded width of a field.
template <class Run>
auto with_width(const Field& field, Run&& run) {
  if (field.width <= 64) return run(std::integral_constant<int, 64>());
  return run(std::integral_constant<int, 128>());
}

// What the workspace of a backward begins with: packed operand blocks, unless they are resident.
inline int64_t packed_bytes(const Plan& plan, int64_t batch) {
  return plan.resident ? 0 : batch * plan.places() * plan.slot_bytes;
}

constexpr int64_t kPartFloats = INT64_C(64) << 20;  // at most this much memory for partial sums

// The launches of one type of operand; each is compiled in a source of its own.
template <class Op>
struct Launcher {
  static Plan plan(const Field& field, bool backward, int32_t limit);
  static void forward(const Problem& problem, int weight_type, const void* weights,
                      const Source& source, float* out, Launch launch);
  static BackwardSizes backward_sizes(const Field& field, int64_t batch, int64_t count, int device);
  static void backward(const Problem& problem, int weight_type, const void* weights,
                       const Source& source, const BackwardSizes& sizes, const float* grad,
                       float* partial, float* grad_coords, void* workspace, Launch launch);
};

template <class Op>
Plan Launcher<Op>::plan(const Field& field, bool backward, int32_t limit) {
  return with_width(field, [&](auto width) {
    constexpr int W = decltype(width)::value;
    const KernelSizes sizes = backward ? sizes_of<BackwardOp<Op, W>, W>(kBackwardWarps<Op, W>)
                                       : sizes_of<Op, W>(kForwardWarps<W>);
    return make_plan(field, sizes, backward, 0, limit);
  });
}

template <class Op>
void Launcher<Op>::forward(const Problem& problem, int weight_type, const void* weights,
                           const Source& source, float* out, Launch launch) {
  with_width(problem.field, [&](auto width) {
    constexpr int W = decltype(width)::value;
    constexpr int kThreads = kForwardWarps<W> * kWarp;
    const Plan plan = Launcher::plan(problem.field, false, shared_limit(launch.device));
    const int64_t at_once =
        blocks_at_once(forward_kernel<Op, W>, kThreads, plan.bytes, launch.device);
    const int64_t blocks = blocks_for(at_once, source.batch,
                                      divided(source.count, kForwardWarps<W> * Shape<Op, W>::rows));
    start(forward_kernel<Op, W>, dim3(blocks, source.batch), kThreads, plan.bytes, launch,
          make_network(problem, weight_type, weights, plan), source, out);
  });
}

template <class Op>
BackwardSizes Launcher<Op>::backward_sizes(const Field& field, int64_t batch, int64_t count,
                                           int device) {
  return with_width(field, [&](auto width) {
    constexpr int W = decltype(width)::value;
    constexpr int kWarps = kBackwardWarps<Op, W>;
    const Plan plan = Launcher::plan(field, true, shared_limit(device));
    const int64_t at_once =
        blocks_at_once(backward_kernel<BackwardOp<Op, W>, W>, kWarps * kWarp, plan.bytes, device);
    const int64_t affordable = kPartFloats / field.parameters();
    const int64_t tasks = divided(count, kWarps * Shape<BackwardOp<Op, W>, W>::rows);
    const int64_t parts = blocks_for(std::min(at_once, affordable), batch, tasks);
    const int64_t kept = plan.kept_shared ? 0 : plan.kept_packets * INT64_C(16);
    return BackwardSizes{parts, packed_bytes(plan, batch) + parts * batch * kept};
  });
}

template <class Op>
void Launcher<Op>::backward(const Problem& problem, int weight_type, const void* weights,
                            const Source& source, const BackwardSizes& sizes, const float* grad,
                            float* partial, float* grad_coords, void* workspace, Launch launch) {
  with_width(problem.field, [&](auto width) {
    constexpr int W = decltype(width)::value;
    constexpr int kThreads = kBackwardWarps<Op, W> * kWarp;
    const Plan plan = Launcher::plan(problem.field, true, shared_limit(launch.device));
    const auto kernel = backward_kernel<BackwardOp<Op, W>, W>;
    blocks_at_once(kernel, kThreads, plan.bytes, launch.device);
    Network net = make_network(problem, weight_type, weights, plan);
    uint4* space = static_cast<uint4*>(workspace);
    uint4* kept = space + packed_bytes(plan, source.batch) / 16;
    if (!plan.resident) {
      start(pack_kernel<BackwardOp<Op, W>, W>, dim3(plan.places(), source.batch),
            kPackWarps * kWarp, 0, launch, net, space);
      net.packed = space;
    }
    start(kernel, dim3(sizes.parts, source.batch), kThreads, plan.bytes, launch, net, source, grad,
          partial, grad_coords, kept);
  });
}

// Calls run(Op()) with the type of the operands.
template <class Run>
auto with_operand(int operand_type, Run&& run) {
  if (operand_type == 0) return run(Operand32());
  if (operand_type == 1) return run(Operand16<false>());
  return run(Operand16<true>());
}

// Instantiated in cuda_float32.cu, cuda_float16.cu and cuda_bfloat16.cu.
#ifndef GINR_CUDA_EMULATION
extern template struct Launcher<Operand32>;
extern template struct Launcher<Operand16<false>>;
extern template struct Launcher<Operand16<true>>;
#endif

}  // namespace cuda
}  // namespace field_mlp
}  // namespace ginr
