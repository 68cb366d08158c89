// Stands in for CUDA's header of this name so that a plain C++ compiler builds a .cu file into code
// that runs its kernels on the CPU, thread by thread: for testing their arithmetic and indexing on
// machines without a GPU. It covers what the kernels of this project use.
//
// The threads of a block are coroutines that hand over at every barrier. A warp goes round its
// threads, each to its next barrier, until all of them wait for the block; when all warps do, the
// barrier opens. Blocks run one after the other, so static shared memory is a static variable, and
// dynamic shared memory holds NaN at the start of each.
#pragma once

#define GINR_CUDA_EMULATION 1

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <tuple>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __grid_constant__

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
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

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr size_t kStack = 256 << 10;
constexpr unsigned kWarp = 32;

// What a device has; tests set them.
inline int shared_limit = 163 << 10;
inline int multiprocessors = 2;
// Warps and lanes take their turns from the last to the first: what depends on the order of threads
// between barriers then differs.
inline bool reversed = false;

enum class State { start, warp_barrier, block_barrier, finished };

struct Thread {
  jmp_buf place;
  std::unique_ptr<char[]> stack{new char[kStack]};
  State state;
  uint32_t published[2][8];
  unsigned turn;  // which of the two it publishes in next
};

struct Block {
  jmp_buf scheduler;
  std::vector<Thread> threads;
  std::vector<uint4> shared;
  void (*body)(void*) = nullptr;
  void* arguments = nullptr;
  int votes = 0;  // of the last __syncthreads_or
};

inline Block block;

inline Thread& self() { return block.threads[threadIdx.x]; }
inline char* shared_memory() { return reinterpret_cast<char*>(block.shared.data()); }

inline void wait(State state) {
  Thread& thread = self();
  thread.state = state;
  if (_setjmp(thread.place) == 0) _longjmp(block.scheduler, 1);
}

inline void enter() {
  block.body(block.arguments);
  self().state = State::finished;
  _longjmp(block.scheduler, 1);
}

// Runs a thread to its next barrier.
inline void resume(unsigned index) {
  Thread& thread = block.threads[index];
  threadIdx = dim3(index, 0, 0);
  if (_setjmp(block.scheduler) != 0) return;
  if (thread.state != State::start) _longjmp(thread.place, 1);
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = thread.stack.get();
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, enter, 0);
  setcontext(&context);
}

[[noreturn]] inline void stuck(const char* what) {
  std::fprintf(stderr, "some threads of a %s wait at a barrier that others never reach\n", what);
  std::abort();
}

// Whether all threads first .. end - 1 are in one state.
inline bool all_in(State state, unsigned first, unsigned end) {
  for (unsigned t = first; t < end; ++t) {
    if (block.threads[t].state != state) return false;
  }
  return true;
}

inline void run_block(unsigned count, void (*body)(void*), void* arguments) {
  if (block.threads.size() < count) block.threads = std::vector<Thread>(count);
  for (unsigned t = 0; t < count; ++t) {
    block.threads[t].state = State::start;
    block.threads[t].turn = 0;
  }
  block.body = body;
  block.arguments = arguments;
  std::memset(block.shared.data(), 0xff, block.shared.size() * sizeof(uint4));
  const unsigned warps = (count + kWarp - 1) / kWarp;
  do {
    for (unsigned turn = 0; turn < warps; ++turn) {
      const unsigned first = (reversed ? warps - 1 - turn : turn) * kWarp;
      const unsigned end = first + kWarp < count ? first + kWarp : count;
      do {
        for (unsigned t = first; t < end; ++t) resume(reversed ? first + end - 1 - t : t);
      } while (all_in(State::warp_barrier, first, end));
      if (!all_in(State::block_barrier, first, end) && !all_in(State::finished, first, end)) {
        stuck("warp");
      }
    }
    if (!all_in(State::block_barrier, 0, count) && !all_in(State::finished, 0, count)) {
      stuck("block");
    }
  } while (!all_in(State::finished, 0, count));
}

// Gives every thread of the warp access to what each published. Two rows by turns: who writes to a
// row again has passed the barrier of the other, and so has everybody who read it.
class Exchange {
 public:
  Exchange(const void* data, size_t bytes) : row_(self().turn++ % 2) {
    std::memcpy(self().published[row_], data, bytes);
    wait(State::warp_barrier);
  }
  const uint32_t* of(unsigned lane) const {
    return block.threads[threadIdx.x / kWarp * kWarp + lane].published[row_];
  }

 private:
  unsigned row_;
};

template <class T>
T from_lane(T value, unsigned lane) {
  const Exchange exchange(&value, sizeof(T));
  T result;
  std::memcpy(&result, exchange.of(lane), sizeof(T));
  return result;
}

// mma.m16n8k16 with 16-bit operands: `number` turns their bits into floats.
template <class Number>
void mma_16(float* c, const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Number number) {
  const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const Exchange exchange(mine, sizeof(mine));
  const unsigned lane = threadIdx.x % kWarp;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    double sum = c[i];
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned slot = k % 8 / 2, shift = k % 2 * 16;
      const uint32_t x = exchange.of(row % 8 * 4 + slot)[row / 8 + k / 8 * 2] >> shift;
      const uint32_t y = exchange.of(column * 4 + slot)[4 + k / 8] >> shift;
      sum += static_cast<double>(number(static_cast<uint16_t>(x))) *
             number(static_cast<uint16_t>(y));
    }
    c[i] = static_cast<float>(sum);
  }
}

// mma.m16n8k8 with tf32 operands, of which the hardware reads the leading 19 bits.
inline void mma_tf32(float* c, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  float mine[6];
  for (unsigned i = 0; i < 6; ++i) {
    const uint32_t bits = (i < 4 ? a[i] : i == 4 ? b0 : b1) & 0xffffe000u;
    std::memcpy(&mine[i], &bits, sizeof(bits));
  }
  const Exchange exchange(mine, sizeof(mine));
  const unsigned lane = threadIdx.x % kWarp;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    double sum = c[i];
    for (unsigned k = 0; k < 8; ++k) {
      float x, y;
      std::memcpy(&x, &exchange.of(row % 8 * 4 + k % 4)[row / 8 + k / 4 * 2], sizeof(x));
      std::memcpy(&y, &exchange.of(column * 4 + k % 4)[4 + k / 4], sizeof(y));
      sum += static_cast<double>(x) * y;
    }
    c[i] = static_cast<float>(sum);
  }
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait(emulation::State::block_barrier); }

inline int __syncthreads_or(int predicate) {
  __syncthreads();  // the last vote has been read by all
  if (threadIdx.x == 0) emulation::block.votes = 0;
  __syncthreads();
  emulation::block.votes |= predicate != 0;
  __syncthreads();
  return emulation::block.votes;
}

inline void __syncwarp(unsigned = ~0u) { emulation::wait(emulation::State::warp_barrier); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
  return emulation::from_lane(value, threadIdx.x % 32 ^ static_cast<unsigned>(lanes));
}

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return emulation::from_lane(value, static_cast<unsigned>(lane));
}

template <class T>
T __shfl_up_sync(unsigned, T value, unsigned lanes) {
  const unsigned lane = threadIdx.x % 32;
  return emulation::from_lane(value, lane < lanes ? lane : lane - lanes);
}

template <class T>
T __shfl_down_sync(unsigned, T value, unsigned lanes) {
  const unsigned lane = threadIdx.x % 32;
  return emulation::from_lane(value, lane + lanes > 31 ? lane : lane + lanes);
}

inline unsigned __ballot_sync(unsigned, bool predicate) {
  const uint32_t mine = predicate;
  const emulation::Exchange exchange(&mine, sizeof(mine));
  unsigned result = 0;
  for (unsigned lane = 0; lane < 32; ++lane) result |= exchange.of(lane)[0] << lane;
  return result;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  uint32_t result = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned from = selector >> (4 * i) & 7;
    result |= static_cast<uint32_t>(bytes >> (8 * from) & 0xff) << (8 * i);
  }
  return result;
}

inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }

enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaDevAttrMultiProcessorCount };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = which == cudaDevAttrMultiProcessorCount ? emulation::multiprocessors
                                                   : emulation::shared_limit;
  return cudaSuccess;
}

inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int bytes) {
  return bytes <= emulation::shared_limit ? cudaSuccess : cudaErrorInvalidConfiguration;
}

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
  *blocks = 1;
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const dim3 grid = config->gridDim;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  gridDim = grid;
  blockDim = config->blockDim;
  emulation::block.shared.resize((config->dynamicSmemBytes + 15) / 16);
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
