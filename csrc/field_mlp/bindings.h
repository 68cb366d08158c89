#pragma once

#include <pybind11/pybind11.h>

namespace ginr {
namespace field_mlp {

// Defines Field and the functions field_mlp* of the Python module; bindings.cpp lists them.
void bind(pybind11::module_& module);

}  // namespace field_mlp
}  // namespace ginr
