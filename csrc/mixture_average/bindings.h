#pragma once

#include <pybind11/pybind11.h>

namespace ginr {
namespace mixture_average {

// Defines the functions mixture_average* of the Python module; bindings.cpp lists them.
void bind(pybind11::module_& module);

}  // namespace mixture_average
}  // namespace ginr
