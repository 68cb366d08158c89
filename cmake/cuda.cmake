# Adds the CUDA sources to the extension when a working nvcc is found.
#
# GINR_FAST_CUDA        AUTO (default): with CUDA if nvcc works; ON: fail if it does not; OFF.
# GINR_FAST_CUDA_ARCHS  CMake architectures, e.g. "80-real;90a-real;90-virtual" (the default).
#
# Both can be given as environment variables or as cache variables (-D). nvcc is looked for in
# $CUDACXX, $CUDA_HOME/bin, $CUDA_PATH/bin and on PATH, nowhere else: a toolkit that nobody pointed
# to is not used.

foreach(name IN ITEMS GINR_FAST_CUDA GINR_FAST_CUDA_ARCHS)
  if(NOT DEFINED ${name} AND NOT "$ENV{${name}}" STREQUAL "")
    set(${name} "$ENV{${name}}")
  endif()
endforeach()
if(NOT DEFINED GINR_FAST_CUDA)
  set(GINR_FAST_CUDA AUTO)
endif()
if(NOT DEFINED GINR_FAST_CUDA_ARCHS)
  set(GINR_FAST_CUDA_ARCHS 80-real 90a-real 90-virtual)
endif()
string(REPLACE "," ";" GINR_FAST_CUDA_ARCHS "${GINR_FAST_CUDA_ARCHS}")

string(TOUPPER "${GINR_FAST_CUDA}" GINR_FAST_CUDA)
if(NOT GINR_FAST_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "GINR_FAST_CUDA: expected AUTO, ON or OFF, got ${GINR_FAST_CUDA}")
endif()
if(GINR_FAST_CUDA STREQUAL "OFF")
  message(STATUS "CUDA: off")
  return()
endif()

# A cached result of an earlier configuration must not outlive a change of PATH.
unset(GINR_NVCC CACHE)
find_program(GINR_NVCC nvcc NO_DEFAULT_PATH
  HINTS "$ENV{CUDACXX}" PATHS "$ENV{CUDA_HOME}/bin" "$ENV{CUDA_PATH}/bin" ENV PATH)
if(NOT "$ENV{CUDACXX}" STREQUAL "")
  set(GINR_NVCC "$ENV{CUDACXX}")
endif()

set(problem "")
if(NOT GINR_NVCC)
  set(problem "nvcc was not found in CUDACXX, CUDA_HOME, CUDA_PATH or PATH")
else()
  # A half-installed toolkit (no headers, no runtime, unsupported host compiler) shows here.
  set(probe "${CMAKE_CURRENT_BINARY_DIR}/nvcc_probe")
  file(WRITE "${probe}.cu"
    "#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n__global__ void probe() {}\n"
    "int main() { probe<<<1, 1>>>(); return cudaDeviceSynchronize() == cudaSuccess ? 0 : 1; }\n")
  execute_process(
    COMMAND "${GINR_NVCC}" -cudart static -ccbin "${CMAKE_CXX_COMPILER}" -o "${probe}" "${probe}.cu"
    RESULT_VARIABLE status OUTPUT_VARIABLE log ERROR_VARIABLE log)
  if(NOT status EQUAL 0)
    set(problem "${GINR_NVCC} cannot compile a small program:\n${log}")
  endif()
endif()
if(problem)
  if(GINR_FAST_CUDA STREQUAL "ON")
    message(FATAL_ERROR "GINR_FAST_CUDA=ON, but ${problem}")
  endif()
  message(STATUS "CUDA: building for CPU only: ${problem}")
  return()
endif()

set(CMAKE_CUDA_COMPILER "${GINR_NVCC}")
set(CMAKE_CUDA_HOST_COMPILER "${CMAKE_CXX_COMPILER}")
set(CMAKE_CUDA_ARCHITECTURES ${GINR_FAST_CUDA_ARCHS})
enable_language(CUDA)
message(STATUS "CUDA: ${GINR_NVCC} ${CMAKE_CUDA_COMPILER_VERSION} for ${GINR_FAST_CUDA_ARCHS}")

target_sources(_C PRIVATE
  csrc/field_mlp/cuda.cu
  csrc/field_mlp/cuda_bfloat16.cu
  csrc/field_mlp/cuda_bindings.cpp
  csrc/field_mlp/cuda_float16.cu
  csrc/field_mlp/cuda_float32.cu
  csrc/mixture_average/cuda.cu
  csrc/volume_render/cuda.cu
  csrc/volume_render/cuda_bfloat16.cu
  csrc/volume_render/cuda_bindings.cpp
  csrc/volume_render/cuda_float16.cu
  csrc/volume_render/cuda_float32.cu)
set_target_properties(_C PROPERTIES
  CUDA_ARCHITECTURES "${GINR_FAST_CUDA_ARCHS}"
  CUDA_RUNTIME_LIBRARY Static
  CUDA_STANDARD 17
  CUDA_VISIBILITY_PRESET hidden)
string(REPLACE ";" " " archs "${GINR_FAST_CUDA_ARCHS}")
target_compile_definitions(_C PRIVATE
  GINR_HAS_CUDA=1
  GINR_CUDA_ARCHS="${archs}"
  GINR_CUDA_VERSION="${CMAKE_CUDA_COMPILER_VERSION}")
