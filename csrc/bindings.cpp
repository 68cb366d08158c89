// The Python module ginr_fast._C. Its functions take addresses, sizes and the CUDA stream as
// integers and believe them: ginr_fast/ops/native.py, the only caller, has checked the tensors.
#include <pybind11/pybind11.h>

#include <string>

#include "common/cpu_path.h"
#include "field_mlp/bindings.h"
#include "mixture_average/bindings.h"
#include "split_gemm/bindings.h"
#include "volume_render/bindings.h"

namespace py = pybind11;

namespace ginr {
namespace {

py::dict build_info() {
  py::list compiled, usable;
  for (CpuPath path : compiled_paths()) {
    compiled.append(name(path));
    if (supported(path)) usable.append(name(path));
  }
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["cpu_paths"] = compiled;
  info["cpu_paths_usable"] = usable;
#if GINR_HAS_CUDA
  info["cuda"] = GINR_CUDA_VERSION;
  info["cuda_archs"] = GINR_CUDA_ARCHS;
#else
  info["cuda"] = py::none();
  info["cuda_archs"] = "";
#endif
  return info;
}

}  // namespace
}  // namespace ginr

PYBIND11_MODULE(_C, module) {
  module.def("build_info", &ginr::build_info);
  module.def("cpu_path", [] { return std::string(ginr::name(ginr::cpu_path())); });
  module.def("force_cpu_path", &ginr::force_cpu_path);
  ginr::field_mlp::bind(module);
  ginr::mixture_average::bind(module);
  ginr::split_gemm::bind(module);
  ginr::volume_render::bind(module);
}
