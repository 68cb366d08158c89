// mixture_average on an NVIDIA GPU: enqueues on `stream` of `device` and returns. Arrays are
// contiguous and on the device; T is float, Half or BFloat16 (names only, so that the bindings need
// no CUDA header). Throws std::runtime_error if CUDA refuses the launch.
#pragma once

#include <cstdint>

#include "mixture_average/problem.h"

namespace ginr {
namespace mixture_average {
namespace cuda {

struct Half;
struct BFloat16;

struct Launch {
  int device;
  uintptr_t stream;
};

// How many partial sums grad_coefficients writes.
int64_t grad_coefficients_parts(const Problem& problem);

// coefficients (B, L, M), bases[s] (M, size_s) -> out (B, P)
template <class T>
void average(const Problem& problem, const void* coefficients, const void* const* bases, void* out,
             Launch launch);

// grad (B, P), bases[s] (M, size_s) -> partial (parts, B, L, M) float32, zero on entry; the
// gradient is its sum over the parts
template <class T>
void grad_coefficients(const Problem& problem, const void* grad, const void* const* bases,
                       float* partial, Launch launch);

// grad (B, P), coefficients (B, L, M) -> out[s] (M, size_s); segments with a null out are skipped
template <class T>
void grad_bases(const Problem& problem, const void* grad, const void* coefficients,
                void* const* out, Launch launch);

}  // namespace cuda
}  // namespace mixture_average
}  // namespace ginr
