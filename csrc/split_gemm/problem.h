// What split_gemm computes: out = f(A Bᵀ + bias), all float32.
#pragma once

#include <cstdint>

namespace ginr {
namespace split_gemm {

// Numbers (i, k) at data[i * row + k * step]; one of row and step is 1.
struct Operand {
  const float* data;
  int64_t row, step;
};

struct Problem {
  int64_t rows, columns, depth;  // A is rows x depth, B is columns x depth
  Operand a, b;
  const float* bias;  // a number a column, or null
  bool relu;
  float* out;
  int64_t out_row;  // from a row of out to the next
};

}  // namespace split_gemm
}  // namespace ginr
