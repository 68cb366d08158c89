// Float32 products as products of bfloat16 on AMX's tiles, accumulated in float32.
//
// In two parts: x = hi + lo with hi = bfloat16(x), lo = bfloat16(x - hi), and
//     a b = hi_a hi_b + hi_a lo_b + lo_a hi_b;
// what is dropped (lo_a lo_b, and what rounding lo lost) is some 2^-17 of |a||b|. In three parts,
// hi + mid + lo is x itself, and
//     a b = hi_a hi_b + hi_a mid_b + mid_a hi_b + mid_a mid_b + hi_a lo_b + lo_a hi_b;
// what is dropped is some 2^-25 of |a||b|, less than float32 loses in rounding a product.
//
// All parts but the last are kept finite, so an infinity lies in the last; it reaches the sum as it
// would in float32, or as NaN, as does what overflows. NaN stays NaN. The instruction takes numbers
// below 2^-126 for zero, so that those below 2^-110 lose their lower parts.
//
// The depth is taken in an order of its own, the same for both operands: a pair is of i and i + 16
// of a step.
#pragma once

#include "common/simd.h"
#include "split_gemm/kernels.h"

namespace ginr {
namespace GINR_SIMD {
namespace tiles {

using split_gemm::Operand;

constexpr int64_t kTile = 512;  // uint16_t of a tile: 16 rows of 64 bytes
constexpr int64_t kPart = 2 * kTile;  // from a part of a panel's step to the next

// Within bfloat16's finite numbers; NaN passes.
inline __m512 clamped(__m512 x) {
  const __m512 limit = _mm512_set1_ps(3.3895313892515355e38f);
  return _mm512_min_ps(limit, _mm512_max_ps(_mm512_sub_ps(_mm512_setzero_ps(), limit), x));
}

// To nearest in the upper half of each word; the lower one is to be dropped.
inline __m512i rounded(__m512 x) {
  return _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
}
// The same for numbers that may be NaN, which a carry could turn into 0.
inline __m512i rounded_number(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __mmask16 number = _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q);
  return _mm512_mask_add_epi32(bits, number, bits, _mm512_set1_epi32(0x8000));
}

// x and y as bfloat16 parts, the highest first, in pairs: x in the lower half of each word. A part
// is what those before it left, to nearest; the last of three holds all of that.
template <int Parts>
inline void split(__m512 x, __m512 y, __m512i pairs[Parts]) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const auto pair = [=](__m512i of_x, __m512i of_y) {  // (of_x >> 16) | (of_y & upper)
    return _mm512_ternarylogic_epi32(_mm512_srli_epi32(of_x, 16), of_y, upper, 0xf8);
  };
  for (int p = 0; p + 1 < Parts; ++p) {
    const __m512i of_x = rounded(clamped(x)), of_y = rounded(clamped(y));
    pairs[p] = pair(of_x, of_y);
    x = _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_and_si512(of_x, upper)));
    y = _mm512_sub_ps(y, _mm512_castsi512_ps(_mm512_and_si512(of_y, upper)));
  }
  pairs[Parts - 1] = Parts == 2 ? pair(rounded_number(x), rounded_number(y))
                                : pair(_mm512_castps_si512(x), _mm512_castps_si512(y));
}

// Rows of pairs become columns of pairs.
inline void transpose(__m512i rows[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    rows[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    rows[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    rows[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    rows[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    rows[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    rows[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    rows[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

inline __m512 some(const float* p, int64_t n) {
  return n <= 0 ? _mm512_setzero_ps() : Vec<float>::load_first(p, n < 16 ? n : 16).v;
}

// The tiles of up to 16 rows and 32 numbers of the depth, one a part; ByPairs: as B's.
template <int Parts, bool ByPairs>
inline void pack_tiles(const Operand& from, const float* at, int64_t rows, int64_t depth,
                       uint16_t* to) {
  __m512i tile[Parts][16];
  const bool whole = rows >= 16 && depth >= 2 * 16;
  for (int64_t i = 0; i < 16; ++i) {
    __m512i pairs[Parts];
    if (from.step == 1) {  // of row i
      const float* row = at + i * from.row;
      const int64_t there = i < rows ? depth : 0;
      if (whole) {
        split<Parts>(_mm512_loadu_ps(row), _mm512_loadu_ps(row + 16), pairs);
      } else {
        split<Parts>(some(row, there), some(row + 16, there - 16), pairs);
      }
    } else {  // of all rows, i and i + 16 of the depth
      const float *first = at + i * from.step, *second = first + 16 * from.step;
      if (whole) {
        split<Parts>(_mm512_loadu_ps(first), _mm512_loadu_ps(second), pairs);
      } else {
        split<Parts>(some(first, i < depth ? rows : 0), some(second, i + 16 < depth ? rows : 0),
                     pairs);
      }
    }
    for (int p = 0; p < Parts; ++p) tile[p][i] = pairs[p];
  }
  for (int p = 0; p < Parts; ++p) {
    if ((from.step == 1) == ByPairs) transpose(tile[p]);
    for (int64_t r = 0; r < 16; ++r) _mm512_store_si512(to + p * kPart + r * 32, tile[p][r]);
  }
}

// Any number of rows, panel after panel.
template <int Parts, bool ByPairs>
inline void pack(const Operand& from, int64_t rows, int64_t depth, uint16_t* to) {
  for (int64_t first = 0; first < rows; first += kPanelRows) {
    for (int64_t k = 0; k < depth; k += kDepthStep, to += Parts * kPart) {
      for (int64_t r = first; r < first + kPanelRows; r += 16) {
        const float* at = from.data + r * from.row + k * from.step;
        const int64_t there = rows - r < 16 ? rows - r : 16;
        pack_tiles<Parts, ByPairs>(from, at, there, depth - k, to + (r - first) / 16 * kTile);
      }
    }
  }
}

// Eight tiles of 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t columns[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Sums of a panel of A against one of B that wait to be handed on.
struct Sums {
  alignas(64) float at[kPanelRows * kPanelRows];
  int64_t row = 0, column = 0;
};

inline void load_a(const uint16_t* part) {
  _tile_loadd(4, part, 64);
  _tile_loadd(5, part + kTile, 64);
}
inline void load_b(const uint16_t* part) {
  _tile_loadd(6, part, 64);
  _tile_loadd(7, part + kTile, 64);
}
inline void add_products() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// The products of a step but that of the highest parts.
template <int Parts>
inline void add_small_products(const uint16_t* a, const uint16_t* b) {
  constexpr int64_t mid = kPart, low = (Parts - 1) * kPart;
  load_a(a + low);
  load_b(b);
  add_products();
  if (Parts == 3) {
    load_a(a + mid);
    add_products();
    load_b(b + mid);
    add_products();
    load_a(a);
    add_products();
  } else {
    load_a(a);
  }
  load_b(b + low);
  add_products();
}

// Takes the tiles for a while.
class TilesInUse {
 public:
  TilesInUse() {
    // The intrinsics do not tell the compiler all that they read.
    const TileConfig config;
    __asm__ volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
    __asm__ volatile("" ::: "memory");
  }
  ~TilesInUse() { _tile_release(); }
  TilesInUse(const TilesInUse&) = delete;
  TilesInUse& operator=(const TilesInUse&) = delete;
};

// C = A B^T of packed operands, which `end(r, c, n, sum)` takes: the first n of the numbers of row
// r from column c on. The sums of a panel are handed on while the next one is multiplied: the
// tiles' unit is busy hundreds of cycles a step, and the vector units are free. Small products come
// first, all of them: they round off less while the sum is small.
template <int Parts, class End>
inline void multiply(const uint16_t* a, int64_t rows, const uint16_t* b, int64_t columns,
                     int64_t depth, const End& end) {
  constexpr int64_t step = Parts * kPart;
  // Rows handed on after each of the steps but, if they do not divide the panel, the last ones.
  const int64_t steps = depth_steps(depth), handed_on = (kPanelRows + steps - 1) / steps;
  const TilesInUse in_use;
  Sums sums[2];
  const Sums* before = nullptr;
  const auto hand_on = [&](int64_t first, int64_t last) {
    const int64_t there = rows - before->row < kPanelRows ? rows - before->row : kPanelRows;
    last = last < there ? last : there;
    for (int64_t h = 0; h < kPanelRows && before->column + h < columns; h += 16) {
      const int64_t c = before->column + h, n = columns - c < 16 ? columns - c : 16;
      const float* at = before->at + h;
      for (int64_t r = first; r < last; ++r) {
        const Vec<float> sum = Vec<float>::load(at + r * kPanelRows);
        if (n == 16) {
          end(before->row + r, c, 16, sum);
        } else {
          end(before->row + r, c, n, sum);
        }
      }
    }
  };
  int which = 0;
  for (int64_t c = 0; c < columns; c += kPanelRows, b += steps * step) {
    const uint16_t* of_a = a;
    for (int64_t r = 0; r < rows; r += kPanelRows, of_a += steps * step) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int64_t s = 0; s < steps; ++s) {
        add_small_products<Parts>(of_a + s * step, b + s * step);
        if (before != nullptr) hand_on(s * handed_on, (s + 1) * handed_on);
      }
      for (int64_t s = 0; s < steps; ++s) {
        load_a(of_a + s * step);
        load_b(b + s * step);
        add_products();
      }
      Sums& now = sums[which];
      which = 1 - which;
      _tile_stored(0, now.at, 128);
      _tile_stored(1, now.at + 16, 128);
      _tile_stored(2, now.at + 16 * kPanelRows, 128);
      _tile_stored(3, now.at + 16 * kPanelRows + 16, 128);
      now.row = r;
      now.column = c;
      before = &now;
    }
  }
  if (before != nullptr) hand_on(0, kPanelRows);
}

}  // namespace tiles
}  // namespace GINR_SIMD
}  // namespace ginr
