// The matrix product that fields consist of, with what comes before and after it in registers.
#pragma once

#include "common/simd.h"
#include "field_mlp/split_weights.h"
#if defined(GINR_SIMD_HAS_TILES)
#include "split_gemm/tiles.h"
#endif

// Around the loops over a register tile: unless they unroll, the tile lives in memory.
#define GINR_UNROLL _Pragma("GCC unroll 8")

namespace ginr {
namespace GINR_SIMD {

// Accumulators of a register tile: kTileRows x kTileVecs, next to kTileVecs operands and a
// broadcast.
constexpr int kTileRows = 6;
constexpr int kTileVecs = kWideRegisters ? 4 : 2;

// sum_k a(r, k) * x[k][c] with a(r, k) = a[r * row + k * step].
struct Product {
  const float* a;
  int64_t row, step;
  const float* x;
  int64_t stride;  // from x[k] to x[k + 1]
  int64_t depth;   // how many k
  const uint16_t* split = nullptr;  // a as the tiles take it; null: it stays with the vectors
  uint16_t* room = nullptr;         // for x as they take it
};

template <int Rows, int Vecs, bool Partial, class Begin, class End>
inline void product_tile(const Product& job, int64_t r0, int64_t c0, int64_t columns,
                         const Begin& begin, const End& end) {
  constexpr int64_t width = Vec<float>::width;
  Vec<float> sum[Rows][Vecs];
  GINR_UNROLL
  for (int r = 0; r < Rows; ++r) {
    GINR_UNROLL
    for (int v = 0; v < Vecs; ++v) sum[r][v] = begin(r0 + r);
  }
  const float* a = job.a + r0 * job.row;
  const float* x = job.x + c0;
  for (int64_t k = 0; k < job.depth; ++k, a += job.step, x += job.stride) {
    Vec<float> operand[Vecs];
    GINR_UNROLL
    for (int v = 0; v < Vecs; ++v) {
      operand[v] = held(Partial ? Vec<float>::load_first(x + v * width, columns)
                                : Vec<float>::load(x + v * width));
    }
    GINR_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const Vec<float> factor = Vec<float>::broadcast(a[r * job.row]);
      GINR_UNROLL
      for (int v = 0; v < Vecs; ++v) {
        sum[r][v] = Vec<float>::fma(factor, operand[v], sum[r][v]);
      }
    }
  }
  GINR_UNROLL
  for (int r = 0; r < Rows; ++r) {
    GINR_UNROLL
    for (int v = 0; v < Vecs; ++v) end(r0 + r, c0 + v * width, columns, sum[r][v]);
  }
}

template <int Rows, class Begin, class End>
inline void product_rows(const Product& job, int64_t r0, int64_t columns, const Begin& begin,
                         const End& end) {
  constexpr int64_t width = Vec<float>::width;
  int64_t c = 0;
  for (; c + kTileVecs * width <= columns; c += kTileVecs * width) {
    product_tile<Rows, kTileVecs, false>(job, r0, c, width, begin, end);
  }
  for (; c + width <= columns; c += width) {
    product_tile<Rows, 1, false>(job, r0, c, width, begin, end);
  }
  if (c < columns) product_tile<Rows, 1, true>(job, r0, c, columns - c, begin, end);
}

// begin(r) starts row r; end(r, c, n, sum) takes the first n of the columns from c on.
template <class Begin, class End>
inline void product(const Product& job, int64_t rows, int64_t columns, const Begin& begin,
                    const End& end) {
#if defined(GINR_SIMD_HAS_TILES)
  if (job.split != nullptr) {
    tiles::pack<kFieldParts, true>({job.x, 1, job.stride}, columns, job.depth, job.room);
    tiles::multiply<kFieldParts>(job.split, rows, job.room, columns, job.depth,
                                 [&](int64_t r, int64_t c, int64_t n, Vec<float> sum) {
                                   end(r, c, n, sum + begin(r));
                                 });
    return;
  }
#endif
  int64_t r = 0;
  for (; r + kTileRows <= rows; r += kTileRows) {
    product_rows<kTileRows>(job, r, columns, begin, end);
  }
  for (; r + 2 <= rows; r += 2) product_rows<2>(job, r, columns, begin, end);
  if (r < rows) product_rows<1>(job, r, columns, begin, end);
}

}  // namespace GINR_SIMD
}  // namespace ginr
