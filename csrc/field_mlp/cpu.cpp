#include "field_mlp/cpu.h"

#include <algorithm>

#include "common/parallel.h"
#include "common/scratch.h"
#include "field_mlp/grid.h"
#include "field_mlp/packed_weights.h"

namespace ginr {
namespace field_mlp {
namespace cpu {
namespace {

// Blocks of a forward task: enough work to hide handing it out.
constexpr int64_t kForwardBlocks = 8;

// The samples of an instance are cut into parts that each sum their own weight gradient. Their
// number depends on the sizes alone, so that the result does not depend on the threads.
constexpr int64_t kTasks = 64;                // wanted over the batch
constexpr int64_t kPartFloats = 8 << 20;      // at most this much memory for the sums
constexpr int64_t kPartSamples = 4 * kFieldSamples;  // at least so many in each

thread_local Scratch t_scratch;

int64_t divided(int64_t count, int64_t by) { return (count + by - 1) / by; }

}  // namespace

int64_t gradient_parts(int64_t batch, int64_t count, int64_t parameters, int64_t least) {
  const int64_t affordable = std::max<int64_t>(1, kPartFloats / (batch * parameters));
  const int64_t wanted = std::max<int64_t>(1, kTasks / batch);
  return std::max<int64_t>(1, std::min({wanted, affordable, count / least}));
}

void sum_parts(const float* sums, int64_t batch, int64_t parts, int64_t parameters, float* out,
               int threads) {
  constexpr int64_t kColumns = 4096;
  const int64_t blocks = divided(parameters, kColumns);
  parallel_for(batch * blocks, threads, [&](int64_t task) {
    const int64_t b = task / blocks, first = task % blocks * kColumns;
    GINR_SIMD_CALL(add_rows, sums + b * parts * parameters + first, parts, parameters,
                   std::min(kColumns, parameters - first), out + b * parameters + first);
  });
}

namespace {

// How many instances have their tables at a time, by 32 MB of them or an instance a thread.
int64_t tables_together(const Batch& batch, int threads) {
  constexpr int64_t kTableFloats = 8 << 20;
  if (batch.grid.dims == 0) return std::max<int64_t>(1, batch.batch);
  return std::max<int64_t>(threads, kTableFloats / table_floats(batch.field, batch.grid));
}

// The tables of instances on a batch's grid, (count, table_floats); null where there is no grid.
// They stay valid until the calling thread asks for others.
const float* make_tables(const Batch& batch, const Instances& some, const float* weights,
                         int threads) {
  if (batch.grid.dims == 0) return nullptr;
  static thread_local Scratch t_tables;
  const Field& field = batch.field;
  const int64_t blocks = table_blocks(batch.grid), size = field.width * kFieldSamples;
  float* tables = t_tables.floats(some.count * blocks * size);
  parallel_for(some.count * blocks, threads, [&](int64_t index) {
    const TablePlaces places = places_of_block(batch.grid, index % blocks);
    const float* row = weights + (some.first + index / blocks) * batch.weight_row;
    const TableTask task{field, batch.frequencies, row, places.axis, places.count,
                         places.positions, tables + index * size,
                         t_scratch.floats(table_scratch(field))};
    GINR_SIMD_CALL(field_table, task);
  });
  return tables;
}

// Calls body(task, instance, out) for the samples of instances in turn; `out` counts values.
template <class Body>
void over_samples(const Batch& batch, const Instances& some, const float* coords, int64_t scratch,
                  int threads, const Body& body) {
  const Field& field = batch.field;
  const int64_t samples = kForwardBlocks * kFieldSamples;
  const int64_t tasks = divided(batch.count, samples);
  parallel_for(some.count * tasks, threads, [&](int64_t index) {
    const int64_t b = some.first + index / tasks, first = index % tasks * samples;
    FieldTask task;
    task.field = field;
    task.frequencies = batch.frequencies;
    task.weights = {nullptr, nullptr};
    const int64_t row = (batch.shared ? 0 : b * batch.count) + first;
    task.coords = batch.grid.dims > 0 ? nullptr : coords + row * field.coord_dim;
    task.grid = batch.grid;
    task.tables = nullptr;
    task.first = first;
    task.count = std::min(samples, batch.count - first);
    task.out = nullptr;
    task.scratch = t_scratch.floats(scratch);
    body(task, b, (b * batch.count + first) * field.out_dim);
  });
}

}  // namespace

void forward(const Batch& batch, const float* weights, const float* coords, float* out,
             int threads) {
  over_weights(batch.field, weights, batch.batch, batch.count, false, threads,
               tables_together(batch, threads),
               [&](const Instances& some, const PackedWeights& packed) {
    const float* tables = make_tables(batch, some, weights, threads);
    over_samples(batch, some, coords, task_forward_floats(batch.field), threads,
                 [&](FieldTask& task, int64_t b, int64_t at) {
      task.weights = packed.of(b);
      if (tables != nullptr) {
        task.tables = tables + (b - some.first) * table_floats(batch.field, batch.grid);
      }
      task.out = out + at;
      GINR_SIMD_CALL(field_forward, task);
    });
  });
}

bool forward_bf16(const Batch& batch, const uint16_t* weights, const float* coords, uint16_t* out,
                  int threads) {
#if defined(GINR_HAS_avx512_bf16)
  const Field& field = batch.field;
  if (!bf16_products() || field.frequencies == 0 || field.width % 2 != 0) return false;
  over_samples(batch, {0, batch.batch}, coords, task_bf16_floats(field), threads,
               [&](FieldTask& task, int64_t b, int64_t at) {
    task.out = reinterpret_cast<float*>(out + at);
    avx512_bf16::field_forward_bf16(task, weights + b * batch.weight_row);
  });
  return true;
#else
  (void)batch, (void)weights, (void)coords, (void)out, (void)threads;
  return false;
#endif
}

namespace {

// Cuts the samples of every instance into parts and calls body(instance, first, count, its weights,
// its tables, row), where `row` is what the part adds its weight gradient to, or null; then sums
// the parts.
template <class Body>
void over_parts(const Batch& batch, const float* weights, bool transposed, float* grad_weights,
                int threads, const Body& body) {
  const int64_t parameters = batch.field.parameters();
  const int64_t parts = gradient_parts(batch.batch, batch.count, parameters, kPartSamples);
  // Whole blocks in each part.
  const int64_t samples = divided(divided(batch.count, parts), kFieldSamples) * kFieldSamples;
  static thread_local Scratch t_sums;
  float* sums = grad_weights;
  if (grad_weights != nullptr && parts > 1) {
    sums = t_sums.floats(batch.batch * parts * parameters);
  }
  over_weights(batch.field, weights, batch.batch, batch.count, transposed, threads,
               tables_together(batch, threads),
               [&](const Instances& some, const PackedWeights& packed) {
    const float* tables = make_tables(batch, some, weights, threads);
    parallel_for(some.count * parts, threads, [&](int64_t index) {
      const int64_t b = some.first + index / parts;
      const float* own = tables;
      if (own != nullptr) own += index / parts * table_floats(batch.field, batch.grid);
      const int64_t first = std::min(batch.count, index % parts * samples);
      float* row = sums == nullptr ? nullptr : sums + (some.first * parts + index) * parameters;
      if (row != nullptr) std::fill_n(row, parameters, 0.0f);
      body(b, first, std::min(samples, batch.count - first), packed.of(b), own, row);
    });
  });
  if (grad_weights != nullptr && parts > 1) {
    sum_parts(sums, batch.batch, parts, parameters, grad_weights, threads);
  }
}

}  // namespace

void backward(const Batch& batch, const float* weights, const float* coords, const float* grad,
              float* grad_weights, float* grad_coords, int threads) {
  const Field& field = batch.field;
  over_parts(batch, weights, true, grad_weights, threads,
             [&](int64_t b, int64_t first, int64_t count, const FieldWeights& own,
                 const float* tables, float* row) {
    const int64_t at = b * batch.count + first;
    FieldGradTask task;
    task.field = field;
    task.frequencies = batch.frequencies;
    task.weights = own;
    task.count = count;
    task.coords = tables != nullptr ? nullptr
                                    : coords + (batch.shared ? first : at) * field.coord_dim;
    task.grid = batch.grid;
    task.tables = tables;
    task.first = first;
    task.grad = grad + at * field.out_dim;
    task.grad_weights = row;
    task.grad_coords = grad_coords == nullptr ? nullptr : grad_coords + at * field.coord_dim;
    const int64_t of_tables = tables == nullptr ? 0 : table_floats(field, batch.grid);
    task.table_grads = t_scratch.floats(of_tables + task_backward_floats(field));
    task.scratch = task.table_grads + of_tables;
    const int64_t of_block = field.width * kFieldSamples;
    for (int64_t block = 0; block * of_block < of_tables; ++block) {
      if (!reaches(batch.grid, block, first, count)) continue;
      std::fill_n(task.table_grads + block * of_block, of_block, 0.0f);
    }
    GINR_SIMD_CALL(field_backward, task);
  });
}

void second(const Batch& batch, const float* weights, const float* along, const float* coords,
            const float* grad, float* grad_grad, float* grad_weights, int threads) {
  const Field& field = batch.field;
  over_parts(batch, weights, false, grad_weights, threads,
             [&](int64_t b, int64_t first, int64_t count, const FieldWeights& own,
                 const float*, float* row) {
    const int64_t at = b * batch.count + first;
    FieldSecondTask task;
    task.field = field;
    task.frequencies = batch.frequencies;
    task.weights = own;
    task.along = along + b * batch.weight_row;
    task.count = count;
    task.coords = coords + (batch.shared ? first : at) * field.coord_dim;
    task.grad = grad + at * field.out_dim;
    task.grad_weights = row;
    task.grad_grad = grad_grad + at * field.out_dim;
    task.scratch = t_scratch.floats(task_second_floats(field));
    GINR_SIMD_CALL(field_second, task);
  });
}

}  // namespace cpu
}  // namespace field_mlp
}  // namespace ginr
