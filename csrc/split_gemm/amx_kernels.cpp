// Float32 products as three products of bfloat16 on AMX's tiles.
//
// x = hi + lo with hi = bfloat16(x), lo = bfloat16(x - hi), and
//     a b = hi_a hi_b + lo_a hi_b + hi_a lo_b,
// accumulated in float32: what is dropped (lo_a lo_b, and what rounding lo lost) is some 2^-17 of
// |a||b|. hi is kept finite, so an infinity lies in lo and reaches the sum as it would in float32;
// NaN stays NaN. The instruction takes numbers below 2^-126 for zero.
#include "split_gemm/kernels.h"

#include "common/simd.h"

namespace ginr {
namespace GINR_SIMD {
namespace {

using Floats = Vec<float>;
using split_gemm::Operand;

constexpr int64_t kTile = 512;  // uint16_t of a tile: 16 rows of 64 bytes
constexpr int64_t kLow = 2 * kTile;  // from the high parts of a panel's step to the low ones
constexpr float kLargest = 3.3895313892515355e38f;  // of bfloat16

// 32 numbers as bfloat16, high and low parts.
struct Split {
  __m512i high, low;
};

inline __m512 widened(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

// Within bfloat16's finite numbers; NaN passes.
inline __m512 clamped(__m512 x) {
  const __m512 limit = _mm512_set1_ps(kLargest);
  return _mm512_min_ps(limit, _mm512_max_ps(_mm512_sub_ps(_mm512_setzero_ps(), limit), x));
}

inline Split split(__m512 x, __m512 y) {
  Split parts;
  parts.high = (__m512i)_mm512_cvtne2ps_pbh(clamped(y), clamped(x));
  const __m512 low_x = _mm512_sub_ps(x, widened(_mm512_castsi512_si256(parts.high)));
  const __m512 low_y = _mm512_sub_ps(y, widened(_mm512_extracti64x4_epi64(parts.high, 1)));
  parts.low = (__m512i)_mm512_cvtne2ps_pbh(low_y, low_x);
  return parts;
}

// Words 0, 16, 1, 17, ...: two rows of bfloat16 as one row of pairs.
inline __m512i paired(__m512i x) {
  const __m512i order = _mm512_or_si512(
      _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
      _mm512_setr_epi32(16 << 16, 17 << 16, 18 << 16, 19 << 16, 20 << 16, 21 << 16, 22 << 16,
                        23 << 16, 24 << 16, 25 << 16, 26 << 16, 27 << 16, 28 << 16, 29 << 16,
                        30 << 16, 31 << 16));
  return _mm512_permutexvar_epi16(order, x);
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
  return n <= 0 ? _mm512_setzero_ps() : Floats::load_first(p, n < 16 ? n : 16).v;
}

// Both tiles of up to 16 rows and 32 numbers of the depth; ByPairs: as B's.
template <bool ByPairs>
inline void pack_tiles(const Operand& from, const float* at, int64_t rows, int64_t depth,
                       uint16_t* to) {
  __m512i high[16], low[16];
  if (from.step == 1) {
    for (int64_t r = 0; r < 16; ++r) {
      const float* row = at + r * from.row;
      const bool there = r < rows;
      const Split parts = split(some(row, there ? depth : 0), some(row + 16, there ? depth - 16 : 0));
      high[r] = parts.high;
      low[r] = parts.low;
    }
  } else {
    for (int64_t pair = 0; pair < 16; ++pair) {
      const float* column = at + 2 * pair * from.step;
      const Split parts = split(some(column, 2 * pair < depth ? rows : 0),
                                some(column + from.step, 2 * pair + 1 < depth ? rows : 0));
      high[pair] = paired(parts.high);
      low[pair] = paired(parts.low);
    }
  }
  if ((from.step == 1) == ByPairs) {
    transpose(high);
    transpose(low);
  }
  for (int64_t r = 0; r < 16; ++r) {
    _mm512_store_si512(to + r * 32, high[r]);
    _mm512_store_si512(to + kLow + r * 32, low[r]);
  }
}

template <bool ByPairs>
inline void pack(const Operand& from, int64_t rows, int64_t depth, uint16_t* to) {
  for (int64_t k = 0; k < depth; k += kDepthStep, to += kPackedStep) {
    for (int64_t r = 0; r < kPanelRows; r += 16) {
      const float* at = from.data + r * from.row + k * from.step;
      const int64_t there = rows - r < 16 ? rows - r : 16;
      pack_tiles<ByPairs>(from, at, there, depth - k, to + r / 16 * kTile);
    }
  }
}

// Eight tiles of 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t columns[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Sums of 32 rows and columns that wait to be written.
struct Sums {
  alignas(64) float at[kPanelRows * kPanelRows];
  int64_t column;
};

inline void finish_rows(const PanelTask& task, const Sums& sums, int64_t first, int64_t last) {
  for (int64_t h = 0; h < kPanelRows && sums.column + h < task.columns; h += 16) {
    const int64_t column = sums.column + h;
    const int64_t count = task.columns - column < 16 ? task.columns - column : 16;
    const Floats bias = task.bias == nullptr ? Floats::broadcast(0.0f)
                                             : Floats::load_first(task.bias + column, count);
    for (int64_t r = first; r < last && r < task.rows; ++r) {
      float* out = task.out + r * task.out_row + column;
      const Floats before = task.add ? Floats::load_first(out, count) : bias;
      Floats sum = Floats::load(sums.at + r * kPanelRows + h) + before;
      if (task.relu) sum = Floats::max(Floats::broadcast(0.0f), sum);
      sum.store_first(out, count);
    }
  }
}

// A panel of A against one of B. Meanwhile `before`, the sums of the panel before (or null), are
// written: the tiles' unit is busy 192 cycles a step, and the vector units are free.
inline void multiply_panels(const PanelTask& task, const uint16_t* b, const Sums* before,
                            Sums& sums) {
  const uint16_t* a = task.a;
  const int64_t steps = depth_steps(task.depth), rows = (kPanelRows + steps - 1) / steps;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t s = 0; s < steps; ++s, a += kPackedStep, b += kPackedStep) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    _tile_loadd(7, b + kTile, 64);
    _tile_loadd(5, a + kTile, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(4, a + kLow, 64);
    _tile_loadd(5, a + kLow + kTile, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b + kLow, 64);
    _tile_loadd(7, b + kLow + kTile, 64);
    _tile_loadd(5, a + kTile, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    if (before != nullptr) finish_rows(task, *before, s * rows, (s + 1) * rows);
  }
  _tile_stored(0, sums.at, 128);
  _tile_stored(1, sums.at + 16, 128);
  _tile_stored(2, sums.at + 16 * kPanelRows, 128);
  _tile_stored(3, sums.at + 16 * kPanelRows + 16, 128);
}

}  // namespace

void pack_a(const Operand& from, int64_t rows, int64_t depth, uint16_t* to) {
  pack<false>(from, rows, depth, to);
}

void pack_b(const Operand& from, int64_t rows, int64_t depth, uint16_t* to) {
  pack<true>(from, rows, depth, to);
}

void multiply(const PanelTask& task) {
  Sums sums[2];
  const TileConfig config;
  _tile_loadconfig(&config);
  const uint16_t* b = task.b;
  const Sums* before = nullptr;
  for (int64_t c = 0; c < task.columns; c += kPanelRows, b += packed_panel(task.depth)) {
    Sums& now = sums[c / kPanelRows % 2];
    now.column = c;
    multiply_panels(task, b, before, now);
    before = &now;
  }
  _tile_release();
  if (before != nullptr) finish_rows(task, *before, 0, kPanelRows);
}

}  // namespace GINR_SIMD
}  // namespace ginr
