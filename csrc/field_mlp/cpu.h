// field_mlp on the CPU, float32.
#pragma once

#include <cstdint>

#include "common/field_layout.h"
#include "field_mlp/job.h"

namespace ginr {
namespace field_mlp {
namespace cpu {

// B fields at N coordinates each, or all at the same N.
struct Batch {
  Field field;
  Frequencies frequencies;
  int64_t batch;
  int64_t count;        // N
  bool shared;          // coordinates are (1, N, d), otherwise (B, N, d)
  FieldGrid grid;       // or those of a grid of N points, and `coords` are its axes
  int64_t weight_row;   // from one instance's weights to the next
};

// out (B, N, out_dim)
void forward(const Batch& batch, const float* weights, const float* coords, float* out,
             int threads);

// The same for bfloat16 weights and values, rounding to bfloat16 between layers, where
// bf16_products() holds; for encoded fields of even width. False: not here.
bool forward_bf16(const Batch& batch, const uint16_t* weights, const float* coords, uint16_t* out,
                  int threads);

// grad (B, N, out_dim); grad_weights (B, P) and grad_coords (B, N, d), each or null.
void backward(const Batch& batch, const float* weights, const float* coords, const float* grad,
              float* grad_weights, float* grad_coords, int threads);

// The gradient of <grad_weights, along> in grad and, if not null, in the weights; see
// second_block.h. along (B, P), grad_grad (B, N, out_dim), grad_weights (B, P).
void second(const Batch& batch, const float* weights, const float* along, const float* coords,
            const float* grad, float* grad_grad, float* grad_weights, int threads);

// Into how many parts the samples (or rays) of an instance are cut whose weight gradients are summed
// apart, at least `least` in each; the sizes alone decide, so that no result depends on the threads.
int64_t gradient_parts(int64_t batch, int64_t count, int64_t parameters, int64_t least);

// (B, parts, P) summed to (B, P).
void sum_parts(const float* sums, int64_t batch, int64_t parts, int64_t parameters, float* out,
               int threads);

}  // namespace cpu
}  // namespace field_mlp
}  // namespace ginr
