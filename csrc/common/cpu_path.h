// Which compiled vector path the kernels take on this processor.
#pragma once

#include <string>
#include <vector>

namespace ginr {

// amx runs the vector kernels of avx512, and on the processor's tiles wide layers of float32 fields
// (in three bfloat16 parts that hold every bit: field_mlp/split_weights.h) and, where the caller
// allows two parts, matrix products (split_gemm).
enum class CpuPath { portable, avx2, avx512, amx };

const char* name(CpuPath path);

// The paths compiled into this module, slowest first.
std::vector<CpuPath> compiled_paths();

// Whether this processor can run a path.
bool supported(CpuPath path);

// The path in use: the fastest one compiled and supported, unless one was forced.
CpuPath cpu_path();

// Whether the path in use has bfloat16 dot products.
bool bf16_products();

// Forces a path by name ("portable", "avx2", "avx512", "amx"), or undoes that with "". Throws
// std::invalid_argument if there is no such path here.
void force_cpu_path(const std::string& path);

}  // namespace ginr

// Calls ginr::<path>::function(...) of the path in use. `function` must be declared in the
// namespace of every path; see GINR_DECLARE_SIMD.
#if defined(GINR_HAS_amx)
#define GINR_AMX_CALL_OR(function, ...) \
  ::ginr::cpu_path() == ::ginr::CpuPath::amx ? ::ginr::amx::function(__VA_ARGS__) :
#define GINR_AMX_NAMESPACE(...) namespace amx { __VA_ARGS__ }
#else
#define GINR_AMX_CALL_OR(function, ...)
#define GINR_AMX_NAMESPACE(...)
#endif
#if defined(GINR_HAS_avx512)
#define GINR_SIMD_CALL(function, ...)                                            \
  (GINR_AMX_CALL_OR(function, __VA_ARGS__)                                       \
   ::ginr::cpu_path() >= ::ginr::CpuPath::avx512 ? ::ginr::avx512::function(__VA_ARGS__) \
   : ::ginr::cpu_path() == ::ginr::CpuPath::avx2 ? ::ginr::avx2::function(__VA_ARGS__)   \
                                                 : ::ginr::portable::function(__VA_ARGS__))
#define GINR_DECLARE_SIMD(...)              \
  namespace portable { __VA_ARGS__ }        \
  namespace avx2 { __VA_ARGS__ }            \
  namespace avx512 { __VA_ARGS__ }          \
  GINR_AMX_NAMESPACE(__VA_ARGS__)
#else
#define GINR_SIMD_CALL(function, ...) (::ginr::portable::function(__VA_ARGS__))
#define GINR_DECLARE_SIMD(...) \
  namespace portable { __VA_ARGS__ }
#endif
