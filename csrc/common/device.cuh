// What the CUDA kernels share: lanes, shared memory, numbers of several types.
//
// Kernels use the device through this header, mma.cuh, block barriers and warp shuffles only, so
// that tests can run them on a CPU (tests/cuda_emulation).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#define GINR_DEVICE __device__ __forceinline__

namespace ginr {
namespace device {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;

// A number in memory. All arithmetic outside matrix products is float32.
enum class Number : int32_t { float32 = 0, float16 = 1, bfloat16 = 2 };

GINR_DEVICE float load_number(const void* base, Number type, int64_t index) {
  if (type == Number::float32) return static_cast<const float*>(base)[index];
  if (type == Number::float16) return __half2float(static_cast<const __half*>(base)[index]);
  return __bfloat162float(static_cast<const __nv_bfloat16*>(base)[index]);
}

// The block's dynamic shared memory.
GINR_DEVICE char* shared_memory() {
#ifdef GINR_CUDA_EMULATION
  return emulation::shared_memory();
#else
  extern __shared__ uint4 ginr_shared[];
  return reinterpret_cast<char*>(ginr_shared);
#endif
}

template <class T>
GINR_DEVICE T* shared_at(int32_t offset) {
  return reinterpret_cast<T*>(shared_memory() + offset);
}

GINR_DEVICE int lane() { return threadIdx.x % kWarp; }
GINR_DEVICE int warp() { return threadIdx.x / kWarp; }

// A lane's place in the fragments of mma.cuh: row within eight, and pair of columns.
GINR_DEVICE int fragment_row() { return lane() / 4; }
GINR_DEVICE int fragment_column() { return 2 * (lane() % 4); }

}  // namespace device
}  // namespace ginr
