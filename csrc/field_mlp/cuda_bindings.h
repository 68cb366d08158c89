#pragma once

#include <pybind11/pybind11.h>

namespace ginr {
namespace field_mlp {

// Defines the functions field_mlp*_cuda of the Python module; cuda_bindings.cpp lists them.
void bind_cuda(pybind11::module_& module);

}  // namespace field_mlp
}  // namespace ginr
