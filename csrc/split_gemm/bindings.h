#pragma once

#include <pybind11/pybind11.h>

namespace ginr {
namespace split_gemm {

// Defines the function split_gemm of the Python module; bindings.cpp lists them.
void bind(pybind11::module_& module);

}  // namespace split_gemm
}  // namespace ginr
