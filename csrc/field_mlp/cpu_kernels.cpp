#include "field_mlp/block.h"
#include "field_mlp/second_block.h"

namespace ginr {
namespace GINR_SIMD {

namespace {

// The points of a task's block, as a grid's or gathered into `block`.
template <class Task>
inline Points points_of(const Task& task, int64_t first, int64_t count, float* block) {
  if (task.coords == nullptr) {
    return {nullptr, &task.grid, task.tables, task.first + first, count};
  }
  gather(task.coords + first * task.field.coord_dim, task.field.coord_dim, count, block);
  return {block};
}

}  // namespace

void field_table(const TableTask& task) {
  table_block(task.field, task.frequencies, task.weights, {task.axis, task.count, task.positions},
              task.table, task.scratch);
}

void field_forward(const FieldTask& task) {
  const Field& field = task.field;
  float* coords = task.scratch;
  float* out = coords + field.coord_dim * kSamples;
  float* scratch = out + field.out_dim * kSamples;
  for (int64_t first = 0; first < task.count; first += kSamples) {
    const int64_t count = task.count - first < kSamples ? task.count - first : kSamples;
    forward_block(field, task.frequencies, task.weights, points_of(task, first, count, coords),
                  out, scratch);
    scatter(out, field.out_dim, count, task.out + first * field.out_dim);
  }
}

void field_backward(const FieldGradTask& task) {
  const Field& field = task.field;
  float* coords = task.scratch;
  float* grad_coords = coords + field.coord_dim * kSamples;
  float* out = grad_coords + field.coord_dim * kSamples;
  float* slope = out + field.out_dim * kSamples;
  float* grad = slope + field.out_dim * kSamples;
  const Kept kept{field, grad + field.out_dim * kSamples};
  float* scratch = kept.base + kept_floats(field);
  for (int64_t first = 0; first < task.count; first += kSamples) {
    const int64_t count = task.count - first < kSamples ? task.count - first : kSamples;
    const Points points = points_of(task, first, count, coords);
    gather(task.grad + first * field.out_dim, field.out_dim, count, grad);
    forward_block_keeping(field, task.frequencies, task.weights, points, out, slope, kept,
                          scratch);
    float* wanted = task.grad_coords == nullptr ? nullptr : grad_coords;
    backward_block(field, task.frequencies, task.weights, points, slope, kept, grad,
                   task.grad_weights, task.table_grads, wanted, scratch);
    if (wanted == nullptr) continue;
    scatter(grad_coords, field.coord_dim, count, task.grad_coords + first * field.coord_dim);
  }
  if (task.coords != nullptr || task.grad_weights == nullptr) return;
  for (int64_t block = 0; block < table_blocks(task.grid); ++block) {
    if (!reaches(task.grid, block, task.first, task.count)) continue;
    table_block_backward(field, task.frequencies, places_of_block(task.grid, block),
                         task.table_grads + block * field.width * kSamples, task.grad_weights,
                         scratch);
  }
}

void field_second(const FieldSecondTask& task) {
  const Field& field = task.field;
  const int64_t last = field.layers() - 1;
  float* coords = task.scratch;
  float* out = coords + field.coord_dim * kSamples;
  float* slope = out + field.out_dim * kSamples;
  float* grad = slope + field.out_dim * kSamples;
  const Kept kept{field, grad + field.out_dim * kSamples};
  const Tangents tangents{field, kept.base + kept_floats(field)};
  float* room = tangents.before(field.layers());
  float* scratch = room + room_floats(field);
  for (int64_t first = 0; first < task.count; first += kSamples) {
    const int64_t count = task.count - first < kSamples ? task.count - first : kSamples;
    gather(task.coords + first * field.coord_dim, field.coord_dim, count, coords);
    gather(task.grad + first * field.out_dim, field.out_dim, count, grad);
    forward_block_keeping(field, task.frequencies, task.weights, {coords}, out, slope, kept, room);
    tangent_block(field, task.weights.row, task.along, slope, kept, tangents);
    scatter(tangents.after(last), field.out_dim, count, task.grad_grad + first * field.out_dim);
    if (task.grad_weights == nullptr) continue;
    second_block(field, task.weights.row, task.along, out, slope, kept, tangents, grad,
                 task.grad_weights, scratch);
  }
}

void add_rows(const float* rows, int64_t count, int64_t stride, int64_t columns, float* out) {
  for (int64_t c = 0; c < columns; c += Floats::width) {
    const int64_t n = columns - c < Floats::width ? columns - c : Floats::width;
    Floats total = Floats::load_first(rows + c, n);
    for (int64_t r = 1; r < count; ++r) {
      total = total + Floats::load_first(rows + r * stride + c, n);
    }
    total.store_first(out + c, n);
  }
}

void vector_sine_cosine(const float* x, int64_t count, float* sines, float* cosines) {
  for (int64_t i = 0; i < count; i += Floats::width) {
    const int64_t n = count - i < Floats::width ? count - i : Floats::width;
    Floats s, c;
    const Floats value = Floats::load_first(x + i, n);
    sine_cosine(value, s, c);
    sine(value).store_first(sines + i, n);
    c.store_first(cosines + i, n);
  }
}

void vector_exponential(const float* x, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += Floats::width) {
    const int64_t n = count - i < Floats::width ? count - i : Floats::width;
    exponential(Floats::load_first(x + i, n)).store_first(out + i, n);
  }
}

}  // namespace GINR_SIMD
}  // namespace ginr
