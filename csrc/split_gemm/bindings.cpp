#include "split_gemm/bindings.h"

#include "common/addresses.h"
#include "split_gemm/cpu.h"

namespace py = pybind11;

namespace ginr {
namespace split_gemm {

void bind(py::module_& module) {
  module.def(
      "split_gemm",
      [](int64_t rows, int64_t columns, int64_t depth, uintptr_t a, int64_t a_row, int64_t a_step,
         uintptr_t b, int64_t b_row, int64_t b_step, uintptr_t bias, bool relu, uintptr_t out,
         int64_t out_row, int threads) {
        const Problem problem{rows,
                              columns,
                              depth,
                              {pointer<const float>(a), a_row, a_step},
                              {pointer<const float>(b), b_row, b_step},
                              pointer<const float>(bias),
                              relu,
                              pointer<float>(out),
                              out_row};
        py::gil_scoped_release release;
        return cpu::product(problem, threads);
      });
}

}  // namespace split_gemm
}  // namespace ginr
