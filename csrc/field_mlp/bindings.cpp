#include "field_mlp/bindings.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>

#include "common/addresses.h"
#include "field_mlp/cpu.h"
#include "field_mlp/problem.h"
#if GINR_HAS_CUDA
#include "field_mlp/cuda_bindings.h"
#endif

namespace py = pybind11;

namespace ginr {
namespace field_mlp {
namespace {

Problem make_problem(int64_t coord_dim, int64_t out_dim, int64_t width, int64_t hidden_layers,
                     int activation, int out_activation, float w0, bool bias,
                     const std::vector<double>& frequencies) {
  if (coord_dim < 1 || out_dim < 1 || width < 1 || hidden_layers < 0) {
    throw std::invalid_argument("field: expected positive sizes");
  }
  for (int f : {activation, out_activation}) {
    if (f < 0 || f > 2) throw std::invalid_argument("field: no such activation");
  }
  Problem problem;
  problem.field = {coord_dim,
                   out_dim,
                   width,
                   hidden_layers,
                   static_cast<int64_t>(frequencies.size()),
                   static_cast<Activation>(activation),
                   static_cast<Activation>(out_activation),
                   w0,
                   bias};
  for (double frequency : frequencies) {
    const float high = static_cast<float>(frequency);
    problem.high.push_back(high);
    problem.low.push_back(static_cast<float>(frequency - static_cast<double>(high)));
  }
  return problem;
}

cpu::Batch batch_of(const Problem& problem, int64_t batch, int64_t count, bool shared) {
  return {problem.field, problem.frequencies(), batch, count, shared, {},
          problem.field.parameters()};
}

// The same on a grid (no shape: none), whose axes lie one after the other.
cpu::Batch batch_of(const Problem& problem, int64_t batch, int64_t count, bool shared,
                    const std::vector<int64_t>& shape, const float* axes) {
  cpu::Batch all = batch_of(problem, batch, count, shared);
  const int64_t dims = static_cast<int64_t>(shape.size());
  if (dims == 0) return all;
  int64_t points = 1;
  for (int64_t size : shape) points *= size;
  if (dims > kMostGridDims || dims != all.field.coord_dim || points != count ||
      all.field.frequencies == 0) {
    throw std::invalid_argument("grid: not of this field and these points");
  }
  all.grid.dims = dims;
  std::copy(shape.begin(), shape.end(), all.grid.shape);
  all.grid.axes = axes;
  return all;
}

void bind_cpu(py::module_& module) {
  module.def("field_mlp_cpu_float32",
             [](const Problem& problem, int64_t batch, int64_t count, bool shared,
                const std::vector<int64_t>& grid, uintptr_t weights, uintptr_t coords,
                uintptr_t out, int threads) {
               py::gil_scoped_release release;
               const float* places = pointer<const float>(coords);
               cpu::forward(batch_of(problem, batch, count, shared, grid, places),
                            pointer<const float>(weights), places, pointer<float>(out), threads);
             });
  module.def("field_mlp_cpu_bfloat16",
             [](const Problem& problem, int64_t batch, int64_t count, bool shared,
                uintptr_t weights, uintptr_t coords, uintptr_t out, int threads) {
               py::gil_scoped_release release;
               return cpu::forward_bf16(batch_of(problem, batch, count, shared),
                                        pointer<const uint16_t>(weights),
                                        pointer<const float>(coords), pointer<uint16_t>(out),
                                        threads);
             });
  module.def("field_mlp_backward_cpu_float32",
             [](const Problem& problem, int64_t batch, int64_t count, bool shared,
                const std::vector<int64_t>& grid, uintptr_t weights, uintptr_t coords,
                uintptr_t grad, uintptr_t grad_weights, uintptr_t grad_coords, int threads) {
               py::gil_scoped_release release;
               const float* places = pointer<const float>(coords);
               cpu::backward(batch_of(problem, batch, count, shared, grid, places),
                             pointer<const float>(weights), places, pointer<const float>(grad),
                             pointer<float>(grad_weights), pointer<float>(grad_coords), threads);
             });
  module.def("field_mlp_second_cpu_float32",
             [](const Problem& problem, int64_t batch, int64_t count, bool shared,
                uintptr_t weights, uintptr_t along, uintptr_t coords, uintptr_t grad,
                uintptr_t grad_grad, uintptr_t grad_weights, int threads) {
               py::gil_scoped_release release;
               cpu::second(batch_of(problem, batch, count, shared), pointer<const float>(weights),
                           pointer<const float>(along), pointer<const float>(coords),
                           pointer<const float>(grad), pointer<float>(grad_grad),
                           pointer<float>(grad_weights), threads);
             });
  module.def("vector_sine_cosine",
             [](uintptr_t x, int64_t count, uintptr_t sine, uintptr_t cosine) {
               GINR_SIMD_CALL(vector_sine_cosine, pointer<const float>(x), count,
                              pointer<float>(sine), pointer<float>(cosine));
             });
  module.def("vector_exponential", [](uintptr_t x, int64_t count, uintptr_t out) {
    GINR_SIMD_CALL(vector_exponential, pointer<const float>(x), count, pointer<float>(out));
  });
}

}  // namespace

void bind(py::module_& module) {
  py::class_<Problem>(module, "Field")
      .def(py::init(&make_problem), py::arg("coord_dim"), py::arg("out_dim"), py::arg("width"),
           py::arg("hidden_layers"), py::arg("activation"), py::arg("out_activation"),
           py::arg("w0"), py::arg("bias"), py::arg("frequencies"))
      .def_property_readonly("parameters",
                             [](const Problem& problem) { return problem.field.parameters(); });
  bind_cpu(module);
#if GINR_HAS_CUDA
  bind_cuda(module);
#endif
}

}  // namespace field_mlp
}  // namespace ginr
