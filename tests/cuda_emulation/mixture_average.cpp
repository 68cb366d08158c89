// The CUDA side of mixture_average behind C functions, for ctypes. Built with the headers of this
// folder in place of CUDA's.
#include "mixture_average/cuda.cu"

using ginr::mixture_average::Problem;
namespace cuda = ginr::mixture_average::cuda;

namespace {

Problem make_problem(const int64_t* shape, int64_t count, const int64_t* sizes) {
  Problem problem{shape[0], shape[1], shape[2], 0, {}};
  for (int64_t s = 0; s < count; ++s) {
    problem.segments.push_back({s / (count / problem.layers), problem.packed, sizes[s]});
    problem.packed += sizes[s];
  }
  return problem;
}

}  // namespace

// shape is (B, layers, M); `sizes`, `bases` and `out` have one entry a parameter.
#define GINR_EXPORT(suffix, T)                                                                    \
  extern "C" void average_##suffix(const int64_t* shape, int64_t count, const int64_t* sizes,     \
                                   const void* coefficients, const void* const* bases,            \
                                   void* out) {                                                   \
    cuda::average<T>(make_problem(shape, count, sizes), coefficients, bases, out, {0, 0});        \
  }                                                                                               \
  extern "C" void grad_coefficients_##suffix(const int64_t* shape, int64_t count,                 \
                                             const int64_t* sizes, const void* grad,              \
                                             const void* const* bases, float* partial) {          \
    cuda::grad_coefficients<T>(make_problem(shape, count, sizes), grad, bases, partial, {0, 0});  \
  }                                                                                               \
  extern "C" void grad_bases_##suffix(const int64_t* shape, int64_t count, const int64_t* sizes,  \
                                      const void* grad, const void* coefficients,                 \
                                      void* const* out) {                                         \
    cuda::grad_bases<T>(make_problem(shape, count, sizes), grad, coefficients, out, {0, 0});      \
  }
GINR_EXPORT(float32, float)
GINR_EXPORT(float16, cuda::Half)
GINR_EXPORT(bfloat16, cuda::BFloat16)

extern "C" int64_t grad_coefficients_parts(const int64_t* shape, int64_t count,
                                           const int64_t* sizes) {
  return cuda::grad_coefficients_parts(make_problem(shape, count, sizes));
}
