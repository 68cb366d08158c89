// Stands in for CUDA's header of this name so that a plain C++ compiler builds a .cu file into code
// that runs its kernels on the CPU, thread by thread: for testing their arithmetic and indexing on
// machines without a GPU. It covers what the kernels of this project use.
//
// The threads of a block are coroutines that hand over at every barrier: going round all of them
// once brings each exactly to the next barrier. Blocks run one after the other, so shared memory is
// a static variable.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <tuple>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration };
inline const char* cudaGetErrorString(cudaError_t) { return "invalid configuration"; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

inline dim3 threadIdx, blockIdx;

namespace emulation {

constexpr size_t kStack = 128 << 10;

struct Block {
  ucontext_t scheduler;
  std::vector<ucontext_t> threads;
  std::vector<std::unique_ptr<char[]>> stacks;
  std::vector<bool> finished;
  std::vector<float> exchange[2];
  std::vector<unsigned> shuffles;  // so far, of each thread
  void (*body)(void*) = nullptr;
  void* arguments = nullptr;
};

inline Block block;

inline void enter() {
  block.body(block.arguments);
  block.finished[threadIdx.x] = true;
}

inline void barrier() { swapcontext(&block.threads[threadIdx.x], &block.scheduler); }

inline void run_block(unsigned count, void (*body)(void*), void* arguments) {
  block.threads.resize(count);
  block.finished.assign(count, false);
  for (std::vector<float>& row : block.exchange) row.resize(count);
  block.shuffles.assign(count, 0);
  block.body = body;
  block.arguments = arguments;
  while (block.stacks.size() < count) block.stacks.emplace_back(new char[kStack]);
  for (unsigned t = 0; t < count; ++t) {
    getcontext(&block.threads[t]);
    block.threads[t].uc_stack.ss_sp = block.stacks[t].get();
    block.threads[t].uc_stack.ss_size = kStack;
    block.threads[t].uc_link = &block.scheduler;
    makecontext(&block.threads[t], enter, 0);
  }
  for (unsigned live = count; live > 0;) {
    unsigned left = 0;
    for (unsigned t = 0; t < count; ++t) {
      if (block.finished[t]) continue;
      threadIdx = dim3(t, 0, 0);
      swapcontext(&block.scheduler, &block.threads[t]);
      left += !block.finished[t];
    }
    if (left != 0 && left != live) {
      std::fprintf(stderr, "some threads of a block wait at a barrier that others never reach\n");
      std::abort();
    }
    live = left;
  }
}

}  // namespace emulation

inline void __syncthreads() { emulation::barrier(); }

// As a barrier of the whole block: stricter than the warp's, and kernels must pass it all the same.
// Calls write to two rows by turns: who writes to a row again has passed the barrier of the other,
// and so has everybody who read it.
inline float __shfl_xor_sync(unsigned, float value, int lanes) {
  emulation::Block& block = emulation::block;
  std::vector<float>& row = block.exchange[block.shuffles[threadIdx.x]++ % 2];
  row[threadIdx.x] = value;
  emulation::barrier();
  return row[threadIdx.x ^ static_cast<unsigned>(lanes)];
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const dim3 grid = config->gridDim;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  auto call = [kernel, values = std::tuple<std::decay_t<Parameters>...>(arguments...)]() {
    std::apply(kernel, values);
  };
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        emulation::run_block(
            config->blockDim.x, [](void* p) { (*static_cast<decltype(call)*>(p))(); }, &call);
      }
    }
  }
  return cudaSuccess;
}
