#include "mixture_average/cpu.h"

#include <algorithm>
#include <cstdint>

#include "common/parallel.h"
#include "mixture_average/cpu_kernels.h"

namespace ginr {
namespace mixture_average {
namespace cpu {
namespace {

// Columns of a base one task takes, at most and at least. Its accumulators (B rows of them) stay in
// cache while the task walks down all M rows, so each number of a base is read from memory once.
constexpr int64_t kColumns = 1024;
constexpr int64_t kFewestColumns = 128;
// For dot products a task takes this many rows of a base and walks along them.
constexpr int64_t kVectors = 32;
// Rows of a gradient one task writes.
constexpr int64_t kGradRows = 64;
// Outputs at least this large (bytes) do not fit in a cache next to anything else: stream them.
constexpr int64_t kStreamBytes = int64_t{4} << 20;
// Below this many multiply-adds waking a thread costs more than it saves.
constexpr int64_t kSerialWork = 1 << 16;

int threads_for(const Problem& problem, int threads) {
  return problem.batch * problem.mixtures * problem.packed < kSerialWork ? 1 : threads;
}

int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

// Wide tasks read long runs of memory, but every thread should get a few tasks.
int64_t columns_for(const Problem& problem, int threads) {
  const int64_t fair = blocks(problem.packed, int64_t{4} * threads);
  return std::clamp(blocks(fair, kFewestColumns) * kFewestColumns, kFewestColumns, kColumns);
}

// The segment and the block within it that a running number over all segments' blocks stands for.
struct Place {
  const Segment* segment;
  int64_t index;  // of the segment
  int64_t block;
};

Place place(const Problem& problem, int64_t task, int64_t block) {
  int64_t index = 0;
  for (const Segment& segment : problem.segments) {
    const int64_t count = blocks(segment.size, block);
    if (task < count) return {&segment, index, task};
    task -= count;
    ++index;
  }
  return {nullptr, 0, 0};
}

int64_t total_blocks(const Problem& problem, int64_t block) {
  int64_t total = 0;
  for (const Segment& segment : problem.segments) total += blocks(segment.size, block);
  return total;
}

}  // namespace

template <class T>
void average(const Problem& problem, const T* coefficients, const T* const* bases, T* out,
             int threads) {
  threads = threads_for(problem, threads);
  const int64_t columns = columns_for(problem, threads);
  parallel_for(total_blocks(problem, columns), threads, [&](int64_t task) {
    const Place at = place(problem, task, columns);
    const int64_t first = at.block * columns;
    Combine<T> job;
    job.a = coefficients + problem.coefficient(0, at.segment->layer, 0);
    job.a_row = problem.layers * problem.mixtures;
    job.a_step = 1;
    job.x = bases[at.index] + first;
    job.x_stride = at.segment->size;
    job.out = out + at.segment->offset + first;
    job.out_stride = problem.packed;
    job.rows = problem.batch;
    job.steps = problem.mixtures;
    job.columns = std::min(columns, at.segment->size - first);
    job.stream = false;
    GINR_SIMD_CALL(combine, job);
  });
}

template <class T>
void grad_coefficients(const Problem& problem, const T* grad, const T* const* bases, T* out,
                       int threads) {
  const int64_t row_blocks = blocks(problem.mixtures, kVectors);
  // A task owns its outputs: the sum over columns has one order, however many threads there are.
  parallel_for(problem.layers * row_blocks, threads_for(problem, threads), [&](int64_t task) {
    const int64_t layer = task / row_blocks;
    const int64_t m = task % row_blocks * kVectors;
    Dots<T> job;
    job.g_stride = problem.packed;
    job.out = out + problem.coefficient(0, layer, m);
    job.out_stride = problem.layers * problem.mixtures;
    job.rows = problem.batch;
    job.vectors = std::min(kVectors, problem.mixtures - m);
    for (int64_t b = 0; b < problem.batch; ++b) {
      std::fill_n(job.out + b * job.out_stride, job.vectors, T(0));
    }
    for (size_t s = 0; s < problem.segments.size(); ++s) {
      const Segment& segment = problem.segments[s];
      if (segment.layer != layer) continue;
      job.x_stride = segment.size;
      for (int64_t c = 0; c < segment.size; c += kDotColumns<T>) {
        job.g = grad + segment.offset + c;
        job.x = bases[s] + m * segment.size + c;
        job.columns = std::min(kDotColumns<T>, segment.size - c);
        GINR_SIMD_CALL(dots, job);
      }
    }
  });
}

template <class T>
void grad_bases(const Problem& problem, const T* grad, const T* coefficients, T* const* out,
                int threads) {
  const int64_t row_blocks = blocks(problem.mixtures, kGradRows);
  const int64_t column_blocks = total_blocks(problem, kColumns);
  parallel_for(row_blocks * column_blocks, threads_for(problem, threads), [&](int64_t task) {
    const Place at = place(problem, task % column_blocks, kColumns);
    T* base = out[at.index];
    if (base == nullptr) return;
    const int64_t first = at.block * kColumns;
    const int64_t m = task / column_blocks * kGradRows;
    const int64_t size = at.segment->size;
    Combine<T> job;
    job.a = coefficients + problem.coefficient(0, at.segment->layer, m);
    job.a_row = 1;
    job.a_step = problem.layers * problem.mixtures;
    job.x = grad + at.segment->offset + first;
    job.x_stride = problem.packed;
    job.out = base + m * size + first;
    job.out_stride = size;
    job.rows = std::min(kGradRows, problem.mixtures - m);
    job.steps = problem.batch;
    job.columns = std::min(kColumns, size - first);
    job.stream = size * problem.mixtures * static_cast<int64_t>(sizeof(T)) >= kStreamBytes &&
                 size * sizeof(T) % 64 == 0 && reinterpret_cast<uintptr_t>(base) % 64 == 0;
    GINR_SIMD_CALL(combine, job);
  });
}

#define GINR_INSTANTIATE(T)                                                                      \
  template void average<T>(const Problem&, const T*, const T* const*, T*, int);                  \
  template void grad_coefficients<T>(const Problem&, const T*, const T* const*, T*, int);        \
  template void grad_bases<T>(const Problem&, const T*, const T*, T* const*, int);
GINR_INSTANTIATE(float)
GINR_INSTANTIATE(double)
#undef GINR_INSTANTIATE

}  // namespace cpu
}  // namespace mixture_average
}  // namespace ginr
