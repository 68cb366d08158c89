// mixture_average on the CPU. Arrays are contiguous; T is float or double.
#pragma once

#include "mixture_average/problem.h"

namespace ginr {
namespace mixture_average {
namespace cpu {

// coefficients (B, L, M), bases[s] (M, size_s) -> out (B, P)
template <class T>
void average(const Problem& problem, const T* coefficients, const T* const* bases, T* out,
             int threads);

// grad (B, P), bases[s] (M, size_s) -> out (B, L, M)
template <class T>
void grad_coefficients(const Problem& problem, const T* grad, const T* const* bases, T* out,
                       int threads);

// grad (B, P), coefficients (B, L, M) -> out[s] (M, size_s); segments with a null out are skipped
template <class T>
void grad_bases(const Problem& problem, const T* grad, const T* coefficients, T* const* out,
                int threads);

}  // namespace cpu
}  // namespace mixture_average
}  // namespace ginr
