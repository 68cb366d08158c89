#include "volume_render/cuda_launch.cuh"

template struct ginr::volume_render::cuda::Renderer<ginr::device::Operand16<false>>;
