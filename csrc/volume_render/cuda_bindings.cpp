#include "volume_render/cuda_bindings.h"

#include <pybind11/stl.h>

#include <utility>

#include "common/addresses.h"
#include "volume_render/cuda.h"

namespace py = pybind11;

namespace ginr {
namespace volume_render {
namespace {

using field_mlp::Problem;

void bind_render(py::module_& module) {
  module.def("volume_render_refusal_cuda", &cuda::refusal, py::arg("field"),
             py::arg("operand_type"), py::arg("backward"), py::arg("device"));
  module.def(
      "volume_render_cuda",
      [](const Problem& problem, const Rendering& rendering, const Occupancy& occupancy,
         int weight_type, int operand_type, int64_t batch, int64_t rays, uintptr_t first_rays,
         uintptr_t weights, uintptr_t origins, uintptr_t directions, uintptr_t out,
         uintptr_t values, int device, uintptr_t stream) {
        py::gil_scoped_release release;
        cuda::forward({problem, rendering, weight_type, operand_type, batch, rays,
                       {pointer<const uint64_t>(first_rays), rays}},
                      occupancy, pointer<const void>(weights), pointer<const float>(origins),
                      pointer<const float>(directions), pointer<float>(out),
                      pointer<float>(values), {device, stream});
      },
      py::arg("field"), py::arg("rendering"), py::arg("occupancy"), py::arg("weight_type"),
      py::arg("operand_type"), py::arg("batch"), py::arg("rays"), py::arg("first_rays"),
      py::arg("weights"), py::arg("origins"), py::arg("directions"), py::arg("out"),
      py::arg("values"), py::arg("device"), py::arg("stream"));
  module.def(
      "volume_render_backward_sizes_cuda",
      [](const Problem& problem, const Rendering& rendering, int operand_type, int64_t batch,
         int64_t rays, int device) {
        const auto sizes = cuda::backward_sizes(
            {problem, rendering, 0, operand_type, batch, rays, {}}, device);
        return std::make_pair(sizes.parts, sizes.workspace);
      },
      py::arg("field"), py::arg("rendering"), py::arg("operand_type"), py::arg("batch"),
      py::arg("rays"), py::arg("device"));
  module.def(
      "volume_render_backward_cuda",
      [](const Problem& problem, const Rendering& rendering, int weight_type, int operand_type,
         int64_t batch, int64_t rays, int64_t parts, uintptr_t first_rays, uintptr_t weights,
         uintptr_t origins, uintptr_t directions, uintptr_t values, uintptr_t grad,
         uintptr_t grad_values, uintptr_t partial, uintptr_t workspace, int device,
         uintptr_t stream) {
        py::gil_scoped_release release;
        cuda::backward({problem, rendering, weight_type, operand_type, batch, rays,
                        {pointer<const uint64_t>(first_rays), rays}},
                       {parts, 0}, pointer<const void>(weights), pointer<const float>(origins),
                       pointer<const float>(directions), pointer<const float>(values),
                       pointer<const float>(grad), pointer<float>(grad_values),
                       pointer<float>(partial), pointer<void>(workspace), {device, stream});
      },
      py::arg("field"), py::arg("rendering"), py::arg("weight_type"), py::arg("operand_type"),
      py::arg("batch"), py::arg("rays"), py::arg("parts"), py::arg("first_rays"),
      py::arg("weights"), py::arg("origins"), py::arg("directions"), py::arg("values"),
      py::arg("grad"), py::arg("grad_values"), py::arg("partial"), py::arg("workspace"),
      py::arg("device"), py::arg("stream"));
}

void bind_composite(py::module_& module) {
  module.def(
      "composite_cuda",
      [](const Rendering& rendering, int64_t rays, uintptr_t values, uintptr_t positions,
         uintptr_t scales, uintptr_t out, int device, uintptr_t stream) {
        py::gil_scoped_release release;
        cuda::composite({rendering, rays, pointer<const float>(values),
                         pointer<const float>(positions), pointer<const float>(scales)},
                        pointer<float>(out), {device, stream});
      },
      py::arg("rendering"), py::arg("rays"), py::arg("values"), py::arg("positions"),
      py::arg("scales"), py::arg("out"), py::arg("device"), py::arg("stream"));
  module.def(
      "composite_backward_cuda",
      [](const Rendering& rendering, int64_t rays, uintptr_t values, uintptr_t positions,
         uintptr_t scales, uintptr_t grad, uintptr_t grad_values, uintptr_t grad_positions,
         uintptr_t grad_scales, int device, uintptr_t stream) {
        py::gil_scoped_release release;
        cuda::composite_backward({rendering, rays, pointer<const float>(values),
                                  pointer<const float>(positions), pointer<const float>(scales)},
                                 pointer<const float>(grad), pointer<float>(grad_values),
                                 pointer<float>(grad_positions), pointer<float>(grad_scales),
                                 {device, stream});
      },
      py::arg("rendering"), py::arg("rays"), py::arg("values"), py::arg("positions"),
      py::arg("scales"), py::arg("grad"), py::arg("grad_values"), py::arg("grad_positions"),
      py::arg("grad_scales"), py::arg("device"), py::arg("stream"));
}

}  // namespace

void bind_cuda(py::module_& module) {
  bind_render(module);
  bind_composite(module);
}

}  // namespace volume_render
}  // namespace ginr
