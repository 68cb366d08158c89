# Builds the C++ sources with the compiler's sanitizers.
#
# GINR_FAST_SANITIZE    e.g. "address,undefined"; empty (default): none.
#
# It can be given as an environment variable or as a cache variable (-D). What a sanitizer finds
# ends the process. `make sanitize` builds this way, apart from the installed extension, and tests it.

set(GINR_KERNEL_OPTIMISATION -O3)
if(NOT DEFINED GINR_FAST_SANITIZE)
  set(GINR_FAST_SANITIZE "$ENV{GINR_FAST_SANITIZE}")
endif()
if(GINR_FAST_SANITIZE STREQUAL "")
  return()
endif()
if(NOT CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
  message(FATAL_ERROR "GINR_FAST_SANITIZE: needs GCC or Clang, got ${CMAKE_CXX_COMPILER_ID}")
endif()

include(CheckCXXSourceCompiles)
set(CMAKE_REQUIRED_FLAGS "-fsanitize=${GINR_FAST_SANITIZE}")
unset(GINR_SANITIZERS_WORK CACHE)
check_cxx_source_compiles("int main() { return 0; }" GINR_SANITIZERS_WORK)
unset(CMAKE_REQUIRED_FLAGS)
if(NOT GINR_SANITIZERS_WORK)
  message(FATAL_ERROR "GINR_FAST_SANITIZE: ${CMAKE_CXX_COMPILER} cannot build with "
    "-fsanitize=${GINR_FAST_SANITIZE}")
endif()
message(STATUS "Sanitizers: ${GINR_FAST_SANITIZE}")
# Instrumented kernels take minutes to compile at -O3.
set(GINR_KERNEL_OPTIMISATION -O1)
foreach(flag IN ITEMS -fsanitize=${GINR_FAST_SANITIZE} -fno-sanitize-recover=all
    # vptr needs the types of other modules, which hide theirs.
    -fno-sanitize=vptr -fno-omit-frame-pointer -g -O1)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:${flag}>)
endforeach()
add_compile_definitions($<$<COMPILE_LANGUAGE:CXX>:GINR_SANITIZE=1>)
add_link_options(-fsanitize=${GINR_FAST_SANITIZE})
