#pragma once

#include <pybind11/pybind11.h>

namespace ginr {
namespace volume_render {

// Defines the functions volume_render*_cuda and composite*_cuda of the Python module;
// cuda_bindings.cpp lists them.
void bind_cuda(pybind11::module_& module);

}  // namespace volume_render
}  // namespace ginr
