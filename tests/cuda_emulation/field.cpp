// The CUDA side of field_mlp and volume_render behind C functions, for ctypes. Built with the
// headers of this folder in place of CUDA's.
#include "field_mlp/cuda.cu"
#include "volume_render/cuda.cu"

using ginr::field_mlp::Problem;
namespace field = ginr::field_mlp::cuda;
namespace render = ginr::volume_render::cuda;

namespace {

// A call of a field; Python's twin is in field_emulation.py.
struct Call {
  int64_t coord_dim, out_dim, width, hidden_layers, frequencies;
  int64_t activation, out_activation, bias;
  int64_t weight_type, operand_type, batch, count, shared;
  double w0;
  const double* omega;
};

struct RenderCall {
  int64_t samples, color, density, scale_by_norm, white_background, jitter;
  uint64_t seed;
  double near, far, last_interval, epsilon;
  const uint32_t* bits;
  int64_t resolution;
  double low, high, stop;
  const uint64_t* first_rays;
};

Problem problem_of(const Call& call) {
  Problem problem;
  problem.field = {call.coord_dim,
                   call.out_dim,
                   call.width,
                   call.hidden_layers,
                   call.frequencies,
                   static_cast<ginr::Activation>(call.activation),
                   static_cast<ginr::Activation>(call.out_activation),
                   static_cast<float>(call.w0),
                   call.bias != 0};
  for (int64_t j = 0; j < call.frequencies; ++j) {
    const float high = static_cast<float>(call.omega[j]);
    problem.high.push_back(high);
    problem.low.push_back(static_cast<float>(call.omega[j] - static_cast<double>(high)));
  }
  return problem;
}

field::Batch batch_of(const Problem& problem, const Call& call) {
  return {problem,    static_cast<int>(call.weight_type), static_cast<int>(call.operand_type),
          call.batch, call.count,                         call.shared != 0};
}

ginr::Rendering rendering_of(const RenderCall& call) {
  return {call.samples,
          static_cast<float>(call.near),
          static_cast<float>(call.far),
          static_cast<ginr::ColorActivation>(call.color),
          static_cast<ginr::DensityActivation>(call.density),
          static_cast<float>(call.last_interval),
          call.scale_by_norm != 0,
          call.white_background != 0,
          static_cast<float>(call.epsilon),
          static_cast<ginr::Jitter>(call.jitter),
          call.seed};
}

ginr::Occupancy occupancy_of(const RenderCall& call) {
  const int64_t r = call.resolution;
  const float low = static_cast<float>(call.low), high = static_cast<float>(call.high);
  return {call.bits, r, (r * r * r + 31) / 32, {low, low, low}, {high, high, high},
          static_cast<float>(call.stop)};
}

render::Batch batch_of(const Problem& problem, const ginr::Rendering& rendering, const Call& call,
                       const RenderCall& how) {
  return {problem,    rendering, static_cast<int>(call.weight_type),
          static_cast<int>(call.operand_type), call.batch, call.count,
          {how.first_rays, call.count}};
}

}  // namespace

extern "C" {

void set_device(int shared_limit, int multiprocessors, int reversed) {
  emulation::shared_limit = shared_limit;
  emulation::multiprocessors = multiprocessors;
  emulation::reversed = reversed != 0;
}

// Whether operand blocks and kept activations of a plan have their own places.
void field_plan(const Call* call, int64_t backward, int64_t* result) {
  const Problem problem = problem_of(*call);
  const auto plan = field::with_operand(static_cast<int>(call->operand_type), [&](auto op) {
    return field::Launcher<decltype(op)>::plan(problem.field, backward != 0,
                                               emulation::shared_limit);
  });
  result[0] = plan.resident;
  result[1] = plan.kept_shared;
  result[2] = plan.bytes;
}

int64_t field_refused(const Call* call, int64_t backward) {
  const Problem problem = problem_of(*call);
  return !field::refusal(problem, static_cast<int>(call->operand_type), backward != 0, 0).empty();
}

void field_forward(const Call* call, const void* weights, const float* coords, float* out) {
  const Problem problem = problem_of(*call);
  field::forward(batch_of(problem, *call), weights, coords, out, {0, 0});
}

void field_backward_sizes(const Call* call, int64_t* result) {
  const Problem problem = problem_of(*call);
  const auto sizes = field::backward_sizes(batch_of(problem, *call), 0);
  result[0] = sizes.parts;
  result[1] = sizes.workspace;
}

void field_backward(const Call* call, const void* weights, const float* coords, const float* grad,
                    float* partial, float* grad_coords, void* workspace) {
  const Problem problem = problem_of(*call);
  const field::Batch batch = batch_of(problem, *call);
  field::backward(batch, field::backward_sizes(batch, 0), weights, coords, grad, partial,
                  grad_coords, workspace, {0, 0});
}

void render_forward(const Call* call, const RenderCall* how, const void* weights,
                    const float* origins, const float* directions, float* out, float* values) {
  const Problem problem = problem_of(*call);
  const ginr::Rendering rendering = rendering_of(*how);
  render::forward(batch_of(problem, rendering, *call, *how), occupancy_of(*how), weights, origins,
                  directions, out, values, {0, 0});
}

void render_backward_sizes(const Call* call, const RenderCall* how, int64_t* result) {
  const Problem problem = problem_of(*call);
  const ginr::Rendering rendering = rendering_of(*how);
  const auto sizes = render::backward_sizes(batch_of(problem, rendering, *call, *how), 0);
  result[0] = sizes.parts;
  result[1] = sizes.workspace;
}

void render_backward(const Call* call, const RenderCall* how, const void* weights,
                     const float* origins, const float* directions, const float* values,
                     const float* grad, float* grad_values, float* partial, void* workspace) {
  const Problem problem = problem_of(*call);
  const ginr::Rendering rendering = rendering_of(*how);
  const render::Batch batch = batch_of(problem, rendering, *call, *how);
  render::backward(batch, render::backward_sizes(batch, 0), weights, origins, directions, values,
                   grad, grad_values, partial, workspace, {0, 0});
}

void composite_forward(const RenderCall* how, int64_t rays, const float* values, const float* t,
                       const float* scale, float* out) {
  render::composite({rendering_of(*how), rays, values, t, scale}, out, {0, 0});
}

void composite_backward(const RenderCall* how, int64_t rays, const float* values, const float* t,
                        const float* scale, const float* grad, float* grad_values, float* grad_t,
                        float* grad_scale) {
  render::composite_backward({rendering_of(*how), rays, values, t, scale}, grad, grad_values,
                             grad_t, grad_scale, {0, 0});
}

}  // extern "C"
