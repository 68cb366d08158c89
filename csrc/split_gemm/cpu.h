// Float32 products on processors with AMX; see cpu_path.h.
#pragma once

#include "split_gemm/problem.h"

namespace ginr {
namespace split_gemm {
namespace cpu {

// Computes the problem; false, and nothing is done, where the path in use has no AMX.
bool product(const Problem& problem, int threads);

}  // namespace cpu
}  // namespace split_gemm
}  // namespace ginr
