// The two kernels of split_gemm. Both see matrices as panels of 32 rows and steps of 32 of the
// depth; sizes that are no multiples of those are padded with zeros.
//
// Where a panel and a step meet are 4 KB of packed numbers: four tiles of 16 rows x 32 bfloat16,
// the high parts of rows 0-15 and 16-31, then their low parts. A tile of A is stored by rows, one
// of B by pairs of the depth, as the instruction takes them.
#pragma once

#include <cstdint>

#include "split_gemm/problem.h"

namespace ginr {

constexpr int64_t kPanelRows = 32;
constexpr int64_t kDepthStep = 32;
constexpr int64_t kPackedStep = 2 * kPanelRows * kDepthStep;  // of uint16_t

inline int64_t depth_steps(int64_t depth) { return (depth + kDepthStep - 1) / kDepthStep; }
inline int64_t packed_panel(int64_t depth) { return depth_steps(depth) * kPackedStep; }

// A panel against `columns` columns of B.
struct PanelTask {
  const uint16_t* a;  // packed_panel(depth)
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
// Packs `rows` <= kPanelRows rows of an operand.
void pack_a(const split_gemm::Operand& from, int64_t rows, int64_t depth, uint16_t* to);
void pack_b(const split_gemm::Operand& from, int64_t rows, int64_t depth, uint16_t* to);
void multiply(const PanelTask& task);
}  // namespace amx

}  // namespace ginr
