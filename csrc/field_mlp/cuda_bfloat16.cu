#include "field_mlp/cuda_launch.cuh"

template struct ginr::field_mlp::cuda::Launcher<ginr::device::Operand16<true>>;
