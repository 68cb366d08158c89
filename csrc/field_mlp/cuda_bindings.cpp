#include "field_mlp/cuda_bindings.h"

#include <pybind11/stl.h>

#include <utility>

#include "common/addresses.h"
#include "field_mlp/cuda.h"

namespace py = pybind11;

namespace ginr {
namespace field_mlp {

void bind_cuda(py::module_& module) {
  module.def("field_mlp_refusal_cuda", &cuda::refusal, py::arg("field"), py::arg("operand_type"),
             py::arg("backward"), py::arg("device"));
  module.def(
      "field_mlp_cuda",
      [](const Problem& problem, int weight_type, int operand_type, int64_t batch, int64_t count,
         bool shared, uintptr_t weights, uintptr_t coords, uintptr_t out, int device,
         uintptr_t stream) {
        py::gil_scoped_release release;
        cuda::forward({problem, weight_type, operand_type, batch, count, shared},
                      pointer<const void>(weights), pointer<const float>(coords),
                      pointer<float>(out), {device, stream});
      },
      py::arg("field"), py::arg("weight_type"), py::arg("operand_type"), py::arg("batch"),
      py::arg("count"), py::arg("shared"), py::arg("weights"), py::arg("coords"), py::arg("out"),
      py::arg("device"), py::arg("stream"));
  module.def(
      "field_mlp_backward_sizes_cuda",
      [](const Problem& problem, int operand_type, int64_t batch, int64_t count, int device) {
        const auto sizes =
            cuda::backward_sizes({problem, 0, operand_type, batch, count, false}, device);
        return std::make_pair(sizes.parts, sizes.workspace);
      },
      py::arg("field"), py::arg("operand_type"), py::arg("batch"), py::arg("count"),
      py::arg("device"));
  module.def(
      "field_mlp_backward_cuda",
      [](const Problem& problem, int weight_type, int operand_type, int64_t batch, int64_t count,
         bool shared, int64_t parts, uintptr_t weights, uintptr_t coords, uintptr_t grad,
         uintptr_t partial, uintptr_t grad_coords, uintptr_t workspace, int device,
         uintptr_t stream) {
        py::gil_scoped_release release;
        cuda::backward({problem, weight_type, operand_type, batch, count, shared}, {parts, 0},
                       pointer<const void>(weights), pointer<const float>(coords),
                       pointer<const float>(grad), pointer<float>(partial),
                       pointer<float>(grad_coords), pointer<void>(workspace), {device, stream});
      },
      py::arg("field"), py::arg("weight_type"), py::arg("operand_type"), py::arg("batch"),
      py::arg("count"), py::arg("shared"), py::arg("parts"), py::arg("weights"), py::arg("coords"),
      py::arg("grad"), py::arg("partial"), py::arg("grad_coords"), py::arg("workspace"),
      py::arg("device"), py::arg("stream"));
}

}  // namespace field_mlp
}  // namespace ginr
