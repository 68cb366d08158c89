// Gradients of the coordinates from those of the first layer's sums.
#pragma once

#include "field_mlp/cuda_layers.cuh"

namespace ginr {
namespace field_mlp {
namespace cuda {

// Gradients of raw coordinates: each lane its share of the columns, into its own sums [row][4][d].
template <class Op, int W>
GINR_DEVICE void raw_coord_sums(
    const Instance& instance,
    const typename Op::Back::Fragment (&grad)[W / 16][Shape<Op, W>::tiles], float* sums) {
  using S = Shape<Op, W>;
  const int d = static_cast<int>(instance.net.field.coord_dim), used = instance.used();
  for (int i = 0; i < d; ++i) {
    const float* w = shared_at<const float>(instance.net.plan.first) + i * W + fragment_column();
    float total[S::tiles][2] = {};
#pragma unroll
    for (int p = 0; p < S::pairs; ++p) {
      if (p < used) {
#pragma unroll
        for (int m = 0; m < S::tiles; ++m) {
          float c[8];
          Op::Back::to(grad[p][m], c);
#pragma unroll
          for (int e = 0; e < 8; ++e) {
            const float factor = w[16 * p + (e & 1) + (e & 4) * 2];
            total[m][(e & 2) / 2] = fmaf(factor, c[e], total[m][(e & 2) / 2]);
          }
        }
      }
    }
#pragma unroll
    for (int m = 0; m < S::tiles; ++m) {
#pragma unroll
      for (int far = 0; far < 2; ++far) {
        const int row = 16 * m + 8 * far + fragment_row();
        sums[(row * 4 + fragment_column() / 2) * d + i] = total[m][far];
      }
    }
  }
}

// The same through the encoding, for the features of one operand block.
template <class Op, int W>
GINR_DEVICE void encoded_coord_sums(
    const Instance& instance, const float* x, int chunk, const uint4* packets,
    const typename Op::Back::Fragment (&grad)[W / 16][Shape<Op, W>::tiles], float* sums) {
  using S = Shape<Op, W>;
  using Back = typename Op::Back;
  const Network& net = instance.net;
  const int d = static_cast<int>(net.field.coord_dim), used = instance.used();
  const int left = static_cast<int>(net.field.input_dim()) - chunk * W;
  for (int p = 0; p < (left < W ? (left + 15) / 16 : S::pairs); ++p) {
    float c[S::tiles][8] = {};
#pragma unroll
    for (int s = 0; s < S::pairs; ++s) {
      if (s < used) {
        uint4 b[Back::kPackets];
        load_packets<Back>(packets + (p * S::pairs + s) * Back::kPackets * kWarp, b);
#pragma unroll
        for (int m = 0; m < S::tiles; ++m) Back::multiply(c[m], grad[s][m], b);
      }
    }
#pragma unroll
    for (int m = 0; m < S::tiles; ++m) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float value, slope;
        int component;
        const int row = 16 * m + element_row(i);
        feature(net, x + row * d, chunk * W + 16 * p + element_column(i), value, slope, component);
        sums[(row * 4 + fragment_column() / 2) * d + component] += slope * c[m][i];
      }
    }
  }
}

// Writes what the four lanes of each row have gathered.
GINR_DEVICE void store_coord_grads(const float* sums, int d, int count, float* to) {
  __syncwarp();
  for (int i = lane(); i < count * d; i += kWarp) {
    const float* from = sums + i / d * 4 * d + i % d;
    to[i] = (from[0] + from[d]) + (from[2 * d] + from[3 * d]);
  }
}

}  // namespace cuda
}  // namespace field_mlp
}  // namespace ginr
