#include "volume_render/bindings.h"

#include <pybind11/stl.h>

#include <array>
#include <stdexcept>

#include "common/addresses.h"
#include "field_mlp/problem.h"
#include "volume_render/cpu.h"
#if GINR_HAS_CUDA
#include "volume_render/cuda_bindings.h"
#endif

namespace py = pybind11;

namespace ginr {
namespace volume_render {
namespace {

using field_mlp::Problem;

Rendering make_rendering(int64_t samples, float near, float far, int color, int density,
                         float last_interval, bool scale_by_norm, bool white_background,
                         float epsilon, int jitter, uint64_t seed) {
  if (samples < 1) throw std::invalid_argument("rendering: expected at least one sample");
  if (color < 0 || color > 1 || density < 0 || density > 2 || jitter < 0 || jitter > 2) {
    throw std::invalid_argument("rendering: no such activation or jitter");
  }
  return {samples,
          near,
          far,
          static_cast<ColorActivation>(color),
          static_cast<DensityActivation>(density),
          last_interval,
          scale_by_norm,
          white_background,
          epsilon,
          static_cast<Jitter>(jitter),
          seed};
}

Occupancy make_occupancy(uintptr_t bits, int64_t resolution, const std::array<float, 3>& low,
                         const std::array<float, 3>& high, float stop) {
  if (resolution < 1 || resolution > 512) {
    throw std::invalid_argument("occupancy: expected 1 to 512 cells along each axis");
  }
  const int64_t words = (resolution * resolution * resolution + 31) / 32;
  return {pointer<const uint32_t>(bits), resolution, words, {low[0], low[1], low[2]},
          {high[0], high[1], high[2]}, stop};
}

cpu::Batch batch_of(const Problem& problem, const Rendering& rendering, int64_t batch,
                    int64_t rays, uintptr_t first_rays) {
  if (problem.field.coord_dim != 3 || problem.field.out_dim < 2) {
    throw std::invalid_argument("field: expected 3 coordinates, a colour and a density");
  }
  return {problem.field, problem.frequencies(), rendering, batch, rays,
          {pointer<const uint64_t>(first_rays), rays}};
}

void bind_cpu(py::module_& module) {
  module.def("volume_render_cpu_float32",
             [](const Problem& problem, const Rendering& rendering, const Occupancy& occupancy,
                int64_t batch, int64_t rays, uintptr_t first_rays, uintptr_t weights,
                uintptr_t origins, uintptr_t directions, uintptr_t out, int threads) {
               const cpu::Batch all = batch_of(problem, rendering, batch, rays, first_rays);
               py::gil_scoped_release release;
               cpu::forward(all, occupancy, pointer<const float>(weights),
                            pointer<const float>(origins), pointer<const float>(directions),
                            pointer<float>(out), threads);
             });
  module.def("volume_render_backward_cpu_float32",
             [](const Problem& problem, const Rendering& rendering, int64_t batch, int64_t rays,
                uintptr_t first_rays, uintptr_t weights, uintptr_t origins, uintptr_t directions,
                uintptr_t grad, uintptr_t grad_weights, uintptr_t grad_origins,
                uintptr_t grad_directions, int threads) {
               const cpu::Batch all = batch_of(problem, rendering, batch, rays, first_rays);
               py::gil_scoped_release release;
               cpu::backward(all, pointer<const float>(weights), pointer<const float>(origins),
                             pointer<const float>(directions), pointer<const float>(grad),
                             pointer<float>(grad_weights), pointer<float>(grad_origins),
                             pointer<float>(grad_directions), threads);
             });
  module.def("composite_cpu_float32",
             [](const Rendering& rendering, int64_t channels, int64_t rays, uintptr_t values,
                uintptr_t positions, uintptr_t scales, uintptr_t out, int threads) {
               py::gil_scoped_release release;
               cpu::composite({rendering, channels, pointer<const float>(values),
                               pointer<const float>(positions), pointer<const float>(scales), rays,
                               pointer<float>(out), nullptr},
                              threads);
             });
  module.def("composite_backward_cpu_float32",
             [](const Rendering& rendering, int64_t channels, int64_t rays, uintptr_t values,
                uintptr_t positions, uintptr_t scales, uintptr_t grad, uintptr_t grad_values,
                uintptr_t grad_positions, uintptr_t grad_scales, int threads) {
               py::gil_scoped_release release;
               cpu::composite_backward(
                   {rendering, channels, pointer<const float>(values),
                    pointer<const float>(positions), pointer<const float>(scales), rays,
                    pointer<const float>(grad), pointer<float>(grad_values),
                    pointer<float>(grad_positions), pointer<float>(grad_scales), nullptr},
                   threads);
             });
}

}  // namespace

void bind(py::module_& module) {
  py::class_<Rendering>(module, "Rendering")
      .def(py::init(&make_rendering), py::arg("samples"), py::arg("near"), py::arg("far"),
           py::arg("color"), py::arg("density"), py::arg("last_interval"),
           py::arg("scale_by_norm"), py::arg("white_background"), py::arg("epsilon"),
           py::arg("jitter"), py::arg("seed"));
  py::class_<Occupancy>(module, "Occupancy")
      .def(py::init(&make_occupancy), py::arg("bits"), py::arg("resolution"), py::arg("low"),
           py::arg("high"), py::arg("stop"));
  bind_cpu(module);
#if GINR_HAS_CUDA
  bind_cuda(module);
#endif
}

}  // namespace volume_render
}  // namespace ginr
