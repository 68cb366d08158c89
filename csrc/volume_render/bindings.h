#pragma once

#include <pybind11/pybind11.h>

namespace ginr {
namespace volume_render {

// Defines Rendering and the functions volume_render* and composite* of the Python module.
void bind(pybind11::module_& module);

}  // namespace volume_render
}  // namespace ginr
