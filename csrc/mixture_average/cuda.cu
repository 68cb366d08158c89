#include "mixture_average/cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace ginr {
namespace mixture_average {
namespace cuda {
namespace {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

}  // namespace
}  // namespace cuda
}  // namespace mixture_average
}  // namespace ginr

#include "mixture_average/cuda_kernels.cuh"

namespace ginr {
namespace mixture_average {
namespace cuda {
namespace {

template <class T>
struct Device {
  using Type = T;
};
template <>
struct Device<Half> {
  using Type = __half;
};
template <>
struct Device<BFloat16> {
  using Type = __nv_bfloat16;
};

void check(cudaError_t status) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("mixture_average: CUDA: ") + cudaGetErrorString(status));
  }
}

template <class... Parameters, class... Arguments>
void start(void (*kernel)(Parameters...), dim3 grid, const Launch& launch,
           Arguments&&... arguments) {
  check(cudaSetDevice(launch.device));
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(kThreads);
  config.stream = reinterpret_cast<cudaStream_t>(launch.stream);
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
}

int tiles(int64_t size, int64_t tile) { return static_cast<int>((size + tile - 1) / tile); }

// Calls launch(segments, tiles) for the segments with a base, as many at a time as fit a launch.
// `tile` is the number of columns of a block.
template <class T, class Pointer, class Launcher>
void for_each_group(const Problem& problem, Pointer const* bases, int tile, Launcher&& launch) {
  Segments<T> group;
  group.batch = static_cast<int32_t>(problem.batch);
  group.layers = static_cast<int32_t>(problem.layers);
  group.mixtures = static_cast<int32_t>(problem.mixtures);
  group.packed = problem.packed;
  group.count = 0;
  int first_tile = 0;
  int64_t layer = -1;
  int part = 0;
  for (size_t s = 0; s <= problem.segments.size(); ++s) {
    if (group.count > 0 && (s == problem.segments.size() || group.count == kMaxSegments)) {
      launch(group, first_tile);
      group.count = 0;
      first_tile = 0;
    }
    if (s == problem.segments.size()) break;
    const Segment& segment = problem.segments[s];
    if (segment.layer != layer) part = 0;
    layer = segment.layer;
    const int count = tiles(segment.size, tile);
    if (bases[s] != nullptr && count > 0) {
      BaseSegment<T>& entry = group.of[group.count++];
      entry.base = static_cast<T*>(bases[s]);
      entry.offset = segment.offset;
      entry.size = static_cast<int32_t>(segment.size);
      entry.layer = static_cast<int32_t>(segment.layer);
      entry.first_tile = first_tile;
      entry.part = part;
      entry.aligned = segment.size * sizeof(T) % 16 == 0 &&
                      reinterpret_cast<uintptr_t>(bases[s]) % 16 == 0;
      first_tile += count;
    }
    part += count;
  }
}

}  // namespace

int64_t grad_coefficients_parts(const Problem& problem) {
  int64_t most = 0;
  int64_t part = 0;
  for (size_t s = 0; s < problem.segments.size(); ++s) {
    if (s > 0 && problem.segments[s].layer != problem.segments[s - 1].layer) part = 0;
    part += tiles(problem.segments[s].size, kSplit);
    most = std::max(most, part);
  }
  return most;
}

template <class T>
void average(const Problem& problem, const void* coefficients, const void* const* bases, void* out,
             Launch launch) {
  using D = typename Device<T>::Type;
  for_each_group<const D>(problem, bases, Vector<D>::tile, [&](const auto& segments, int count) {
    const dim3 grid(tiles(problem.batch, kBatchTile), count);
    start(average_kernel<D>, grid, launch, segments, static_cast<const D*>(coefficients),
          static_cast<D*>(out));
  });
}

template <class T>
void grad_coefficients(const Problem& problem, const void* grad, const void* const* bases,
                       float* partial, Launch launch) {
  using D = typename Device<T>::Type;
  for_each_group<const D>(problem, bases, kSplit, [&](const auto& segments, int count) {
    const dim3 grid(tiles(problem.batch, kBatchTile), tiles(problem.mixtures, kWarps * kRowTile),
                    count);
    start(grad_coefficients_kernel<D>, grid, launch, segments, static_cast<const D*>(grad),
          partial);
  });
}

template <class T>
void grad_bases(const Problem& problem, const void* grad, const void* coefficients,
                void* const* out, Launch launch) {
  using D = typename Device<T>::Type;
  for_each_group<D>(problem, out, Vector<D>::tile, [&](const auto& segments, int count) {
    const dim3 grid(tiles(problem.mixtures, kWarps * kGradRowTile), count);
    start(grad_bases_kernel<D>, grid, launch, segments, static_cast<const D*>(grad),
          static_cast<const D*>(coefficients));
  });
}

#define GINR_INSTANTIATE(T)                                                                       \
  template void average<T>(const Problem&, const void*, const void* const*, void*, Launch);       \
  template void grad_coefficients<T>(const Problem&, const void*, const void* const*, float*,     \
                                     Launch);                                                     \
  template void grad_bases<T>(const Problem&, const void*, const void*, void* const*, Launch);
GINR_INSTANTIATE(float)
GINR_INSTANTIATE(Half)
GINR_INSTANTIATE(BFloat16)
#undef GINR_INSTANTIATE

}  // namespace cuda
}  // namespace mixture_average
}  // namespace ginr
