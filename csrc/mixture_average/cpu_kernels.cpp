#include "mixture_average/cpu_kernels.h"

#include "common/simd.h"

// Around the loops over a register tile: unless they unroll, the tile lives in memory.
#define GINR_UNROLL _Pragma("GCC unroll 8")

namespace ginr {
namespace GINR_SIMD {
namespace {

// Accumulators of a register tile: kRows x kVecs, next to kVecs operands and a broadcast.
constexpr int kRows = kWideRegisters ? 8 : 4;
constexpr int kVecs = 2;

// Steps between two visits of the same outputs: enough to make loading and storing the
// accumulators cheap, few enough that the rows of x in use stay in cache for the next row tile.
constexpr int64_t kSteps = 16;

// One block of steps: where its arrays start, and how far ahead of x the rows to prefetch lie.
template <class T>
struct Block {
  const T* a;
  const T* x;
  T* out;
  int64_t steps;
  int64_t ahead;
  bool add;  // to what out holds; otherwise overwrite it
};

template <class T, int Rows, int Vecs, bool Partial>
inline void combine_tile(const Combine<T>& job, const Block<T>& at, int64_t c, int64_t columns) {
  const T* x = at.x + c;
  T* out = at.out + c;
  Vec<T> sum[Rows][Vecs];
  GINR_UNROLL
  for (int r = 0; r < Rows; ++r) {
    GINR_UNROLL
    for (int v = 0; v < Vecs; ++v) {
      const T* p = out + r * job.out_stride + v * Vec<T>::width;
      sum[r][v] = !at.add ? Vec<T>::broadcast(0)
                       : Partial ? Vec<T>::load_first(p, columns) : Vec<T>::load(p);
    }
  }
  for (int64_t s = 0; s < at.steps; ++s) {
    Vec<T> operand[Vecs];
    GINR_UNROLL
    for (int v = 0; v < Vecs; ++v) {
      const T* p = x + s * job.x_stride + v * Vec<T>::width;
      prefetch(p + at.ahead);
      operand[v] = Partial ? Vec<T>::load_first(p, columns) : Vec<T>::load(p);
    }
    GINR_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const Vec<T> factor = Vec<T>::broadcast(at.a[r * job.a_row + s * job.a_step]);
      GINR_UNROLL
      for (int v = 0; v < Vecs; ++v) sum[r][v] = Vec<T>::fma(factor, operand[v], sum[r][v]);
    }
  }
  GINR_UNROLL
  for (int r = 0; r < Rows; ++r) {
    GINR_UNROLL
    for (int v = 0; v < Vecs; ++v) {
      T* p = out + r * job.out_stride + v * Vec<T>::width;
      if (Partial) {
        sum[r][v].store_first(p, columns);
      } else if (job.stream) {
        sum[r][v].stream(p);
      } else {
        sum[r][v].store(p);
      }
    }
  }
}

template <class T, int Rows>
void combine_rows(const Combine<T>& job, const Block<T>& at) {
  constexpr int64_t width = Vec<T>::width;
  int64_t c = 0;
  for (; c + kVecs * width <= job.columns; c += kVecs * width) {
    combine_tile<T, Rows, kVecs, false>(job, at, c, 0);
  }
  for (; c + width <= job.columns; c += width) combine_tile<T, Rows, 1, false>(job, at, c, 0);
  if (c < job.columns) combine_tile<T, Rows, 1, true>(job, at, c, job.columns - c);
}

template <class T>
void combine_all(const Combine<T>& job) {
  // A streamed output is written once and never read.
  const int64_t block = job.stream ? job.steps : kSteps;
  for (int64_t s = 0; s < job.steps; s += block) {
    Block<T> at;
    at.x = job.x + s * job.x_stride;
    at.steps = job.steps - s < block ? job.steps - s : block;
    at.add = s > 0;
    for (int64_t r = 0; r < job.rows;) {
      at.a = job.a + r * job.a_row + s * job.a_step;
      at.out = job.out + r * job.out_stride;
      // The first row tile brings in the next block of x; it serves the others from cache.
      at.ahead = r == 0 && s + block < job.steps ? block * job.x_stride : 0;
      const int64_t left = job.rows - r;
      if (left >= kRows) {
        combine_rows<T, kRows>(job, at);
        r += kRows;
      } else if (left >= 4) {
        combine_rows<T, 4>(job, at);
        r += 4;
      } else if (left >= 2) {
        combine_rows<T, 2>(job, at);
        r += 2;
      } else {
        combine_rows<T, 1>(job, at);
        r += 1;
      }
    }
  }
  if (job.stream) stream_fence();
}

// Rows x Count dot products of rows g (packed) and vectors x; `next` is what comes after x.
template <class T, int Rows, int Count>
inline void dots_tile(const Dots<T>& job, const T* g, const T* x, const T* next, T* out) {
  constexpr int64_t width = Vec<T>::width;
  Vec<T> sum[Rows][Count];
  GINR_UNROLL
  for (int r = 0; r < Rows; ++r) {
    GINR_UNROLL
    for (int q = 0; q < Count; ++q) sum[r][q] = Vec<T>::broadcast(0);
  }
  int64_t c = 0;
  for (; c + width <= job.columns; c += width) {
    Vec<T> operand[Count];
    GINR_UNROLL
    for (int q = 0; q < Count; ++q) {
      operand[q] = Vec<T>::load(x + q * job.x_stride + c);
      prefetch(next + q * job.x_stride + c);
    }
    GINR_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const Vec<T> other = held(Vec<T>::load(g + r * kDotColumns<T> + c));
      GINR_UNROLL
      for (int q = 0; q < Count; ++q) sum[r][q] = Vec<T>::fma(other, operand[q], sum[r][q]);
    }
  }
  if (c < job.columns) {
    const int64_t left = job.columns - c;
    GINR_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const Vec<T> other = Vec<T>::load_first(g + r * kDotColumns<T> + c, left);
      GINR_UNROLL
      for (int q = 0; q < Count; ++q) {
        const Vec<T> operand = Vec<T>::load_first(x + q * job.x_stride + c, left);
        sum[r][q] = Vec<T>::fma(other, operand, sum[r][q]);
      }
    }
  }
  GINR_UNROLL
  for (int r = 0; r < Rows; ++r) {
    GINR_UNROLL
    for (int q = 0; q < Count; ++q) out[r * job.out_stride + q] += sum[r][q].sum();
  }
}

template <class T, int Rows>
void dots_rows(const Dots<T>& job, int64_t row) {
  // Rows of g start anywhere; a packed copy spares the kernel loads that straddle cache lines.
  alignas(64) T g[Rows * kDotColumns<T>];
  GINR_UNROLL
  for (int r = 0; r < Rows; ++r) {
    std::memcpy(g + r * kDotColumns<T>, job.g + (row + r) * job.g_stride,
                static_cast<size_t>(job.columns) * sizeof(T));
  }
  T* out = job.out + row * job.out_stride;
  int64_t q = 0;
  for (; q + kVecs <= job.vectors; q += kVecs) {
    // Next come the vectors below, or the columns to the right of the first ones.
    const T* x = job.x + q * job.x_stride;
    const T* next = q + 2 * kVecs <= job.vectors ? x + kVecs * job.x_stride : job.x + job.columns;
    dots_tile<T, Rows, kVecs>(job, g, x, next, out + q);
  }
  for (; q < job.vectors; ++q) {
    const T* x = job.x + q * job.x_stride;
    dots_tile<T, Rows, 1>(job, g, x, x, out + q);
  }
}

template <class T>
void dots_all(const Dots<T>& job) {
  int64_t r = 0;
  for (; r + kRows <= job.rows; r += kRows) dots_rows<T, kRows>(job, r);
  for (; r < job.rows; ++r) dots_rows<T, 1>(job, r);
}

}  // namespace

void combine(const Combine<float>& job) { combine_all(job); }
void combine(const Combine<double>& job) { combine_all(job); }
void dots(const Dots<float>& job) { dots_all(job); }
void dots(const Dots<double>& job) { dots_all(job); }

}  // namespace GINR_SIMD
}  // namespace ginr
