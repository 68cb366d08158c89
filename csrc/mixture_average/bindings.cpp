#include "mixture_average/bindings.h"

#include <pybind11/stl.h>

#include <string>

#include "common/addresses.h"
#include "mixture_average/cpu.h"
#if GINR_HAS_CUDA
#include "mixture_average/cuda.h"
#endif

namespace py = pybind11;

namespace ginr {
namespace mixture_average {
namespace {

// (B, L, M) and the size of every segment, as many in each layer as in any other.
Problem make_problem(int64_t batch, int64_t layers, int64_t mixtures,
                     const std::vector<int64_t>& sizes) {
  Problem problem{batch, layers, mixtures, 0, {}};
  const int64_t per_layer = static_cast<int64_t>(sizes.size()) / layers;
  for (size_t i = 0; i < sizes.size(); ++i) {
    problem.segments.push_back({static_cast<int64_t>(i) / per_layer, problem.packed, sizes[i]});
    problem.packed += sizes[i];
  }
  return problem;
}

template <class T>
void bind_cpu(py::module_& module, const std::string& dtype) {
  module.def(
      ("mixture_average_cpu_" + dtype).c_str(),
      [](const Problem& problem, uintptr_t coefficients, const Addresses& bases, uintptr_t out,
         int threads) {
        const auto from = pointers<const T>(bases);
        py::gil_scoped_release release;
        cpu::average<T>(problem, pointer<const T>(coefficients), from.data(), pointer<T>(out),
                        threads);
      });
  module.def(
      ("mixture_average_grad_coefficients_cpu_" + dtype).c_str(),
      [](const Problem& problem, uintptr_t grad, const Addresses& bases, uintptr_t out,
         int threads) {
        const auto from = pointers<const T>(bases);
        py::gil_scoped_release release;
        cpu::grad_coefficients<T>(problem, pointer<const T>(grad), from.data(), pointer<T>(out),
                                  threads);
      });
  module.def(
      ("mixture_average_grad_bases_cpu_" + dtype).c_str(),
      [](const Problem& problem, uintptr_t grad, uintptr_t coefficients, const Addresses& out,
         int threads) {
        const auto to = pointers<T>(out);
        py::gil_scoped_release release;
        cpu::grad_bases<T>(problem, pointer<const T>(grad), pointer<const T>(coefficients),
                           to.data(), threads);
      });
}

#if GINR_HAS_CUDA
template <class T>
void bind_cuda(py::module_& module, const std::string& dtype) {
  module.def(
      ("mixture_average_cuda_" + dtype).c_str(),
      [](const Problem& problem, uintptr_t coefficients, const Addresses& bases, uintptr_t out,
         int device, uintptr_t stream) {
        const auto from = pointers<const void>(bases);
        py::gil_scoped_release release;
        cuda::average<T>(problem, pointer<const void>(coefficients), from.data(),
                         pointer<void>(out), {device, stream});
      });
  module.def(
      ("mixture_average_grad_coefficients_cuda_" + dtype).c_str(),
      [](const Problem& problem, uintptr_t grad, const Addresses& bases, uintptr_t partial,
         int device, uintptr_t stream) {
        const auto from = pointers<const void>(bases);
        py::gil_scoped_release release;
        cuda::grad_coefficients<T>(problem, pointer<const void>(grad), from.data(),
                                   pointer<float>(partial), {device, stream});
      });
  module.def(
      ("mixture_average_grad_bases_cuda_" + dtype).c_str(),
      [](const Problem& problem, uintptr_t grad, uintptr_t coefficients, const Addresses& out,
         int device, uintptr_t stream) {
        const auto to = pointers<void>(out);
        py::gil_scoped_release release;
        cuda::grad_bases<T>(problem, pointer<const void>(grad), pointer<const void>(coefficients),
                            to.data(), {device, stream});
      });
}
#endif

}  // namespace

void bind(py::module_& module) {
  py::class_<Problem>(module, "MixtureAverageProblem")
      .def(py::init(&make_problem), py::arg("batch"), py::arg("layers"), py::arg("mixtures"),
           py::arg("sizes"));
  bind_cpu<float>(module, "float32");
  bind_cpu<double>(module, "float64");
#if GINR_HAS_CUDA
  module.def("mixture_average_grad_coefficients_parts", &cuda::grad_coefficients_parts);
  bind_cuda<float>(module, "float32");
  bind_cuda<cuda::Half>(module, "float16");
  bind_cuda<cuda::BFloat16>(module, "bfloat16");
#endif
}

}  // namespace mixture_average
}  // namespace ginr
