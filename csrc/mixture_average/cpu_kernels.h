// The two contractions that mixture_average and its gradients consist of.
#pragma once

#include <cstdint>

#include "common/cpu_path.h"

namespace ginr {

// out[r, c] = sum_s a(r, s) * x[s, c]   with a(r, s) = a[r * a_row + s * a_step].
template <class T>
struct Combine {
  const T* a;
  int64_t a_row, a_step;
  const T* x;
  int64_t x_stride;
  T* out;
  int64_t out_stride;
  int64_t rows, steps, columns;
  bool stream;  // write past the caches; for outputs too large to be read back from them
};

// Most columns of one Dots job.
template <class T>
constexpr int64_t kDotColumns = 4096 / sizeof(T);

// out[r, q] += sum_c g[r, c] * x[q, c]
template <class T>
struct Dots {
  const T* g;
  int64_t g_stride;
  const T* x;
  int64_t x_stride;
  T* out;
  int64_t out_stride;
  int64_t rows, columns, vectors;  // r < rows, c < columns <= kDotColumns, q < vectors
};

GINR_DECLARE_SIMD(
  void combine(const Combine<float>& job);
  void combine(const Combine<double>& job);
  void dots(const Dots<float>& job);
  void dots(const Dots<double>& job);
)

}  // namespace ginr
