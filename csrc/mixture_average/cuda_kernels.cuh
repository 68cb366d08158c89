// The CUDA kernels of mixture_average; problem.h has the formulas. They use nothing but thread and
// block indices, shared memory, __syncthreads and a warp shuffle, so that a test can run this very
// code on a CPU, thread by thread.
//
// All arithmetic is float32; T (float, __half, __nv_bfloat16) is what lies in memory. `to_float`
// and `from_float` convert. All three kernels move the bases through the chip once for kBatchTile
// instances: they are bound by memory bandwidth, and use 16-byte accesses where rows are aligned.
#pragma once

#include <cstdint>

namespace ginr {
namespace mixture_average {
namespace cuda {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarp * kWarps;
constexpr int kBatchTile = 8;      // instances a block serves at a time
constexpr int kSplit = 1024;       // columns of one partial sum of grad_coefficients
constexpr int kRowTile = 4;        // rows of a base per warp in grad_coefficients
constexpr int kGradRowTile = 8;    // rows per warp in grad_bases
constexpr int kMaxSegments = 64;   // per launch: they travel as kernel arguments

template <class T>
struct Vector {
  static constexpr int size = 16 / sizeof(T);
  static constexpr int tile = kWarp * size;  // columns one warp covers
};

// One parameter: its (M, size) base, or the gradient of it, and its place in the packed row.
template <class T>
struct BaseSegment {
  T* base;
  int64_t offset;
  int32_t size;
  int32_t layer;
  int32_t first_tile;  // number of its first column tile among all tiles of the launch
  int32_t part;        // number of its first partial sum among those of its layer
  bool aligned;        // every row starts at a multiple of 16 bytes
};

template <class T>
struct Segments {
  BaseSegment<T> of[kMaxSegments];
  int32_t count;
  int32_t batch, layers, mixtures;
  int64_t packed;
};

template <class T>
__device__ inline int find_segment(const Segments<T>& segments, int tile) {
  int s = 0;
  while (s + 1 < segments.count && segments.of[s + 1].first_tile <= tile) ++s;
  return s;
}

template <class T>
struct alignas(16) Packet {
  T at[Vector<T>::size];
};

// Vector<T>::size columns of a row from `column` on; zero past the end of the row.
template <class T>
__device__ inline void load_columns(const T* row, int column, int size, bool aligned,
                                    float (&value)[Vector<T>::size]) {
  if (aligned) {
    if (column >= size) {
#pragma unroll
      for (int v = 0; v < Vector<T>::size; ++v) value[v] = 0.0f;
      return;
    }
    const Packet<T> packet = *reinterpret_cast<const Packet<T>*>(row + column);
#pragma unroll
    for (int v = 0; v < Vector<T>::size; ++v) value[v] = to_float(packet.at[v]);
  } else {
#pragma unroll
    for (int v = 0; v < Vector<T>::size; ++v) {
      value[v] = column + v < size ? to_float(row[column + v]) : 0.0f;
    }
  }
}

template <class T>
__device__ inline void store_columns(T* row, int column, int size, bool aligned,
                                     const float (&value)[Vector<T>::size]) {
  if (aligned) {
    if (column >= size) return;
    Packet<T> packet;
#pragma unroll
    for (int v = 0; v < Vector<T>::size; ++v) packet.at[v] = from_float<T>(value[v]);
    *reinterpret_cast<Packet<T>*>(row + column) = packet;
  } else {
#pragma unroll
    for (int v = 0; v < Vector<T>::size; ++v) {
      if (column + v < size) row[column + v] = from_float<T>(value[v]);
    }
  }
}

// out (B, P). Block: one column tile, kBatchTile instances; its warps share the rows m.
// Grid: (batch tiles, column tiles), so that the batch tiles of one column tile run together and
// find it in the L2 cache.
template <class T>
__global__ void __launch_bounds__(kThreads)
    average_kernel(const Segments<const T> segments, const T* coefficients, T* out) {
  constexpr int kVector = Vector<T>::size;
  constexpr int kUnroll = sizeof(T);  // loads in flight; more spill registers
  __shared__ float partial[kWarps][Vector<T>::tile];

  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const BaseSegment<const T>& segment = segments.of[find_segment(segments, blockIdx.y)];
  const int first = (blockIdx.y - segment.first_tile) * Vector<T>::tile;
  const int column = first + lane * kVector;
  const int batch = blockIdx.x * kBatchTile;
  const int64_t instance = static_cast<int64_t>(segments.layers) * segments.mixtures;
  const T* a = coefficients + batch * instance +
               static_cast<int64_t>(segment.layer) * segments.mixtures;

  float sum[kBatchTile][kVector];
#pragma unroll
  for (int b = 0; b < kBatchTile; ++b) {
#pragma unroll
    for (int v = 0; v < kVector; ++v) sum[b][v] = 0.0f;
  }
#pragma unroll kUnroll
  for (int m = warp; m < segments.mixtures; m += kWarps) {
    float x[kVector];
    load_columns(segment.base + static_cast<int64_t>(m) * segment.size, column, segment.size,
                 segment.aligned, x);
#pragma unroll
    for (int b = 0; b < kBatchTile; ++b) {
      const float factor = batch + b < segments.batch ? to_float(a[b * instance + m]) : 0.0f;
#pragma unroll
      for (int v = 0; v < kVector; ++v) sum[b][v] += factor * x[v];
    }
  }
#pragma unroll
  for (int b = 0; b < kBatchTile; ++b) {
    if (batch + b < segments.batch) {  // the same for the whole block
#pragma unroll
      for (int v = 0; v < kVector; ++v) partial[warp][lane * kVector + v] = sum[b][v];
      __syncthreads();
      for (int c = threadIdx.x; c < Vector<T>::tile && first + c < segment.size; c += kThreads) {
        float total = 0.0f;
        for (int w = 0; w < kWarps; ++w) total += partial[w][c];
        out[(batch + b) * segments.packed + segment.offset + first + c] = from_float<T>(total);
      }
      __syncthreads();
    }
  }
}

// partial (parts, B, L, M) float32, zero where a layer has fewer parts; their sum over the parts is
// the gradient. Block: kSplit columns of one segment, kBatchTile instances, kRowTile rows m a warp.
// Grid: (batch tiles, row tiles, split tiles). No atomics: the result does not vary between runs.
template <class T>
__global__ void __launch_bounds__(kThreads)
    grad_coefficients_kernel(const Segments<const T> segments, const T* grad, float* partial) {
  constexpr int kVector = Vector<T>::size;
  alignas(16) __shared__ float g[kBatchTile][kSplit];

  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const BaseSegment<const T>& segment = segments.of[find_segment(segments, blockIdx.z)];
  const int split = blockIdx.z - segment.first_tile;
  const int first = split * kSplit;
  const int columns = segment.size - first < kSplit ? segment.size - first : kSplit;
  const int batch = blockIdx.x * kBatchTile;
  const int row = (blockIdx.y * kWarps + warp) * kRowTile;

  for (int i = threadIdx.x; i < kBatchTile * kSplit; i += kThreads) {
    const int b = i / kSplit;
    const int c = i % kSplit;
    g[b][c] = batch + b < segments.batch && c < columns
                  ? to_float(grad[(batch + b) * segments.packed + segment.offset + first + c])
                  : 0.0f;
  }
  __syncthreads();

  float sum[kBatchTile][kRowTile];
#pragma unroll
  for (int b = 0; b < kBatchTile; ++b) {
#pragma unroll
    for (int r = 0; r < kRowTile; ++r) sum[b][r] = 0.0f;
  }
  for (int c = lane * kVector; c < columns; c += Vector<T>::tile) {
    float x[kRowTile][kVector];
#pragma unroll
    for (int r = 0; r < kRowTile; ++r) {
      // Rows past the last one repeat it; their sums are not stored.
      const int m = row + r < segments.mixtures ? row + r : segments.mixtures - 1;
      load_columns(segment.base + static_cast<int64_t>(m) * segment.size, first + c, segment.size,
                   segment.aligned, x[r]);
    }
#pragma unroll
    for (int b = 0; b < kBatchTile; ++b) {
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        const float factor = g[b][c + v];
#pragma unroll
        for (int r = 0; r < kRowTile; ++r) sum[b][r] += factor * x[r][v];
      }
    }
  }
#pragma unroll
  for (int b = 0; b < kBatchTile; ++b) {
#pragma unroll
    for (int r = 0; r < kRowTile; ++r) {
      float total = sum[b][r];
#pragma unroll
      for (int step = kWarp / 2; step > 0; step /= 2) {
        total += __shfl_xor_sync(0xffffffffu, total, step);
      }
      if (lane == 0 && batch + b < segments.batch && row + r < segments.mixtures) {
        const int64_t part = segment.part + split;
        partial[((part * segments.batch + batch + b) * segments.layers + segment.layer) *
                    segments.mixtures + row + r] = total;
      }
    }
  }
}

// Gradients (M, size) of every segment. Block: one column tile, kGradRowTile rows m a warp.
// Grid: (row tiles, column tiles).
template <class T>
__global__ void __launch_bounds__(kThreads)
    grad_bases_kernel(const Segments<T> segments, const T* grad, const T* coefficients) {
  constexpr int kVector = Vector<T>::size;
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const BaseSegment<T>& segment = segments.of[find_segment(segments, blockIdx.y)];
  const int column = (blockIdx.y - segment.first_tile) * Vector<T>::tile + lane * kVector;
  const int row = (blockIdx.x * kWarps + warp) * kGradRowTile;
  const int64_t instance = static_cast<int64_t>(segments.layers) * segments.mixtures;
  const T* a = coefficients + static_cast<int64_t>(segment.layer) * segments.mixtures;

  float sum[kGradRowTile][kVector];
#pragma unroll
  for (int r = 0; r < kGradRowTile; ++r) {
#pragma unroll
    for (int v = 0; v < kVector; ++v) sum[r][v] = 0.0f;
  }
  for (int b = 0; b < segments.batch; ++b) {
    float g[kVector];
    // Packed rows have any length, so they are rarely aligned.
    load_columns(grad + b * segments.packed + segment.offset, column, segment.size, false, g);
#pragma unroll
    for (int r = 0; r < kGradRowTile; ++r) {
      const float factor =
          row + r < segments.mixtures ? to_float(a[b * instance + row + r]) : 0.0f;
#pragma unroll
      for (int v = 0; v < kVector; ++v) sum[r][v] += factor * g[v];
    }
  }
#pragma unroll
  for (int r = 0; r < kGradRowTile; ++r) {
    if (row + r < segments.mixtures) {
      store_columns(segment.base + static_cast<int64_t>(row + r) * segment.size, column,
                    segment.size, segment.aligned, sum[r]);
    }
  }
}

}  // namespace cuda
}  // namespace mixture_average
}  // namespace ginr
