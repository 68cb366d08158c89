// The kernels of split_gemm. They see matrices as panels of 32 rows and steps of 32 of the
// depth; sizes that are no multiples of those are padded with zeros.
//
// Where a panel and a step meet, each part of the numbers takes 2 KB: two tiles of 16 rows x 32
// bfloat16, of rows 0-15 and 16-31; the highest part comes first. A tile of A is stored by rows,
// one of B by pairs of the depth, as the instruction takes them.
#pragma once

#include <cstdint>

#include "common/field_layout.h"
#include "split_gemm/problem.h"

namespace ginr {

constexpr int64_t kPanelRows = 32;
constexpr int64_t kDepthStep = 32;
constexpr int kGemmParts = 2;  // of split_gemm; fields have their own

GINR_INLINE int64_t depth_steps(int64_t depth) { return (depth + kDepthStep - 1) / kDepthStep; }
// uint16_t of a panel whose numbers have `parts` parts.
GINR_INLINE int64_t packed_panel(int64_t depth, int parts) {
  return depth_steps(depth) * parts * kPanelRows * kDepthStep;
}

// A panel against `columns` columns of B.
struct PanelTask {
  const uint16_t* a;  // packed_panel(depth, kGemmParts)
  const uint16_t* b;  // as many of those as panels
  int64_t rows;       // at most kPanelRows
  int64_t columns, depth;
  const float* bias;  // null: none
  bool add;           // to out, instead of bias
  bool relu;
  float* out;
  int64_t out_row;
};

namespace amx {
// Packs `rows` rows of an operand, panel after panel; A in 2 or 3 parts, B in those of split_gemm.
void pack_a(const split_gemm::Operand& from, int64_t rows, int64_t depth, int parts, uint16_t* to);
void pack_b(const split_gemm::Operand& from, int64_t rows, int64_t depth, uint16_t* to);
void multiply(const PanelTask& task);
}  // namespace amx

}  // namespace ginr
