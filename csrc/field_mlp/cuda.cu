#include "field_mlp/cuda.h"

#include "field_mlp/cuda_launch.cuh"

namespace ginr {
namespace field_mlp {
namespace cuda {
namespace {

Source points(const Batch& batch, const float* coords) {
  Source source = {};
  source.batch = batch.batch;
  source.count = batch.count;
  source.coords = coords;
  source.shared = batch.shared;
  return source;
}

}  // namespace

std::string refusal(const Problem& problem, int operand_type, bool backward, int device) {
  const Field& field = problem.field;
  const auto most = [](const char* what, int64_t limit, int64_t got) {
    return got <= limit ? std::string()
                        : "it serves " + std::string(what) + " up to " + std::to_string(limit) +
                              " on CUDA, not " + std::to_string(got);
  };
  for (const std::string& reason :
       {most("widths", kMostWidth, field.width), most("values", kMostOut, field.out_dim),
        most("coordinates", kMostCoords, field.coord_dim),
        most("frequencies", kMostFrequencies, field.frequencies)}) {
    if (!reason.empty()) return reason;
  }
  const int32_t limit = shared_limit(device);
  const Plan plan =
      with_operand(operand_type, [&](auto op) {
        return Launcher<decltype(op)>::plan(field, backward, limit);
      });
  if (plan.bytes <= limit) return "";
  return "it needs " + std::to_string(plan.bytes) + " bytes of shared memory, and the device has " +
         std::to_string(limit);
}

void forward(const Batch& batch, const void* weights, const float* coords, float* out,
             Launch launch) {
  with_operand(batch.operand_type, [&](auto op) {
    Launcher<decltype(op)>::forward(batch.problem, batch.weight_type, weights,
                                    points(batch, coords), out, launch);
  });
}

BackwardSizes backward_sizes(const Batch& batch, int device) {
  return with_operand(batch.operand_type, [&](auto op) {
    return Launcher<decltype(op)>::backward_sizes(batch.problem.field, batch.batch, batch.count,
                                                  device);
  });
}

void backward(const Batch& batch, const BackwardSizes& sizes, const void* weights,
              const float* coords, const float* grad, float* partial, float* grad_coords,
              void* workspace, Launch launch) {
  with_operand(batch.operand_type, [&](auto op) {
    Launcher<decltype(op)>::backward(batch.problem, batch.weight_type, weights,
                                     points(batch, coords), sizes, grad, partial, grad_coords,
                                     workspace, launch);
  });
}

}  // namespace cuda
}  // namespace field_mlp
}  // namespace ginr
