// The forward of a field on the samples of one warp, in registers from the coordinate to the value.
//
// Hidden widths are padded to W with zeros, samples go in rows of 16. Operands of matrix products
// have the type Op (common/mma.cuh); a first layer on a raw coordinate, biases, phases and all sums
// are float32.
#pragma once

#include "common/field_layout.h"
#include "common/mma.cuh"
#include "common/sine.cuh"
#include "field_mlp/cuda_plan.h"

namespace ginr {
namespace field_mlp {
namespace cuda {

using namespace ginr::device;

template <class Op, int W>
struct Shape {
  static constexpr int pairs = W / 16;  // of n8 tiles; also steps of 16 depths
  // Of 16 rows: what registers hold.
  static constexpr int tiles = Op::kThin || (Op::kWide && W == 128) ? 1 : 2;
  static constexpr int rows = 16 * tiles;
  static constexpr int packet = Op::kPackets * kWarp;  // from one pair and step to the next
  using Fragment = typename Op::Fragment;
};

// The fields of a launch and where a block keeps what. A kernel argument.
struct Network {
  Field field;
  Plan plan;
  const void* weights;  // (B, P)
  Number number;
  // Operand blocks of a backward in which they take turns, packed before: [instance][place].
  const uint4* packed;
  float high[kMostFrequencies], low[kMostFrequencies];  // angular frequencies as sums of two
};

// A matrix in the packed row of one field: at(r, c) is zero outside.
struct Matrix {
  const void* weights;
  Number number;
  int64_t offset;
  int rows, columns, stride;

  GINR_DEVICE float at(int r, int c) const {
    return r < rows && c < columns
               ? load_number(weights, number, offset + static_cast<int64_t>(r) * stride + c)
               : 0.0f;
  }
};

// What the threads of a block know of the field they evaluate.
struct Instance {
  const Network& net;
  int64_t row;  // offset of its packed row

  GINR_DEVICE Matrix matrix(int64_t offset, int64_t rows, int64_t columns, int64_t stride) const {
    return {net.weights, net.number, row + offset, static_cast<int>(rows),
            static_cast<int>(columns), static_cast<int>(stride)};
  }
  // Operand block i: W features of the first layer, or a hidden layer.
  template <int W>
  GINR_DEVICE Matrix block(int i) const {
    const Field& f = net.field;
    if (i >= net.plan.chunks) {
      return matrix(f.weight(i - net.plan.chunks + 1), f.width, f.width, f.width);
    }
    const int64_t input = f.input_dim(), left = input - i * W;
    return matrix(i * W, f.width, left < W ? left : W, input);
  }
  GINR_DEVICE Matrix last() const {
    const Field& f = net.field;
    return matrix(f.weight(f.layers() - 1), f.out_dim, f.width, f.width);
  }
  GINR_DEVICE int used() const { return static_cast<int>(net.field.width + 15) / 16; }
};

// Packs a matrix (columns, depths) as the second operand: [pair][step][packet][lane].
template <class Op, bool Turned>
GINR_DEVICE void pack_operand(const Matrix& m, int pairs, int steps, uint4* to) {
  const int count = pairs * steps * Op::kPackets;
  for (int i = warp(); i < count; i += blockDim.x / kWarp) {
    const int q = i % Op::kPackets, s = i / Op::kPackets % steps, p = i / Op::kPackets / steps;
    to[i * kWarp + lane()] = Op::packet(q, [&](int k, int n) {
      return Turned ? m.at(16 * s + k, 16 * p + n) : m.at(16 * p + n, 16 * s + k);
    });
  }
}

// The place of operand block i among those of an instance.
template <bool Turned>
GINR_DEVICE int place_of(const Plan& plan, int i) {
  return i + (Turned ? plan.blocks : 0);
}

// Operand block i where this lane reads it. All threads of the block call this; unless blocks are
// resident it also separates what came before from what follows. Packed: net.packed has them.
template <class Op, int W, bool Turned, bool Packed>
GINR_DEVICE const uint4* operand_block(const Instance& instance, int i) {
  const Network& net = instance.net;
  const Plan& plan = net.plan;
  const int place = place_of<Turned>(plan, i);
  uint4* at = shared_at<uint4>(plan.slots + (plan.resident ? place * plan.slot_bytes : 0));
  if (!plan.resident) {
    __syncthreads();
    if (!Packed) {
      pack_operand<Op, Turned>(instance.block<W>(i), W / 16, W / 16, at);
    } else {
      constexpr int kCount = W / 16 * (W / 16) * Op::kPackets * kWarp;
      const int64_t row = instance.row / net.field.parameters() * plan.places() + place;
      const uint4* from = net.packed + row * (plan.slot_bytes / 16);
      for (int j = threadIdx.x; j < kCount; j += blockDim.x) at[j] = from[j];
    }
    __syncthreads();
  }
  return at + lane();
}

// What a block needs of its field whatever the sample. Ends with a barrier.
template <class Op, int W, bool Backward>
GINR_DEVICE void load_field(const Instance& instance) {
  const Network& net = instance.net;
  const Field& field = net.field;
  const Plan& plan = net.plan;
  const int width = static_cast<int>(field.width), d = static_cast<int>(field.coord_dim);
  const int layers = static_cast<int>(field.layers());
  if (field.frequencies == 0) {
    const Matrix first = instance.matrix(0, width, d, d);
    float* to = shared_at<float>(plan.first);
    for (int i = threadIdx.x; i < d * W; i += blockDim.x) to[i] = first.at(i % W, i / W);
  }
  const int n = static_cast<int>(field.frequencies);
  float* frequencies = shared_at<float>(plan.frequencies);
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    frequencies[i] = net.high[i];
    frequencies[n + i] = net.low[i];
  }
  float* biases = shared_at<float>(plan.biases);
  for (int i = threadIdx.x; i < (layers - 1) * W + 16; i += blockDim.x) {
    const int l = i / W < layers - 1 ? i / W : layers - 1;
    const int64_t rows = field.bias ? field.rows(l) : 0;
    biases[i] = instance.matrix(field.bias_at(l), 1, rows, rows).at(0, i - l * W);
  }
  pack_operand<Op, false>(instance.last(), 1, W / 16, shared_at<uint4>(plan.last));
  if (Backward) {
    pack_operand<typename Op::Back, true>(instance.last(), W / 16, 1,
                                          shared_at<uint4>(plan.last_turned));
  }
  if (plan.resident) {
    for (int i = 0; i < plan.blocks; ++i) {
      pack_operand<Op, false>(instance.block<W>(i), W / 16, W / 16,
                              shared_at<uint4>(plan.slots + i * plan.slot_bytes));
      if (Backward) {
        const int at = plan.slots + place_of<true>(plan, i) * plan.slot_bytes;
        pack_operand<typename Op::Back, true>(instance.block<W>(i), W / 16, W / 16,
                                              shared_at<uint4>(at));
      }
    }
  }
  __syncthreads();
}

// Row and column of a lane's element i of a fragment.
GINR_DEVICE int element_row(int i) { return fragment_row() + (i & 2) * 4; }
GINR_DEVICE int element_column(int i) { return fragment_column() + (i & 1) + (i & 4) * 2; }

template <int Tiles>
GINR_DEVICE void start_with_bias(const float* bias, float (&c)[Tiles][8]) {
  const float* b = bias + fragment_column();
#pragma unroll
  for (int m = 0; m < Tiles; ++m) {
#pragma unroll
    for (int i = 0; i < 8; ++i) c[m][i] = b[(i & 1) + (i & 4) * 2];
  }
}

// c = f(c), and slope = f'(c) if wanted.
template <int Polynomials, bool Slope>
GINR_DEVICE void activate(Activation f, float w0, float (&c)[8], float (&slope)[8]) {
  if (f == Activation::sine) {
#pragma unroll
    for (int i = 0; i < 8; ++i) c[i] *= w0;
    sines<Polynomials, Slope>(c, slope);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (Slope) slope[i] *= w0;
    }
  } else if (f == Activation::relu) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (Slope) slope[i] = c[i] <= 0.0f ? 0.0f : 1.0f;
      c[i] = c[i] <= 0.0f ? 0.0f : c[i];
    }
  } else if (Slope) {
#pragma unroll
    for (int i = 0; i < 8; ++i) slope[i] = 1.0f;
  }
}

// Keeps nothing: the forward alone.
struct KeepNothing {
  static constexpr bool wanted = false, reload = false;
  GINR_DEVICE void operator()(int, int, int, const float (&)[8], const float (&)[8]) const {}
};

// One feature of the encoding and its derivative by the coordinate.
GINR_DEVICE void feature(const Network& net, const float* coord, int index, float& value,
                         float& slope, int& component) {
  const int n = static_cast<int>(net.field.frequencies);
  const int half = static_cast<int>(net.field.coord_dim) * n;
  component = 0;
  value = slope = 0.0f;
  if (index >= 2 * half) return;
  const int within = index < half ? index : index - half;
  component = within / n;
  const float* frequencies = shared_at<const float>(net.plan.frequencies) + within % n;
  float s, c;
  sine_cosine_of_product(coord[component], frequencies[0], frequencies[n], s, c);
  value = index < half ? c : s;
  slope = frequencies[0] * (index < half ? -s : c);
}

// Features first .. first + 15 of 16 samples at x [16][d].
template <class Op>
GINR_DEVICE typename Op::Fragment features(const Network& net, const float* x, int first) {
  float c[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float slope;
    int component;
    feature(net, x + element_row(i) * static_cast<int>(net.field.coord_dim),
            first + element_column(i), c[i], slope, component);
  }
  return Op::from(c);
}

// Applies layer l's activation to one pair of tiles, keeps it, and makes it an operand.
template <class Op, int Tiles, class Keep>
GINR_DEVICE void finish(const Network& net, int l, int p, float (&c)[Tiles][8], const Keep& keep,
                        typename Op::Fragment (&out)[Tiles]) {
#pragma unroll
  for (int m = 0; m < Tiles; ++m) {
    float slope[8];
    activate<Op::kPolynomials, Keep::wanted>(net.field.activation, net.field.w0, c[m], slope);
    keep(l, p, m, c[m], slope);
    out[m] = Op::from(c[m]);
  }
}

template <class Op, int W, class Keep>
GINR_DEVICE void first_layer_raw(const Instance& instance, const float* x, const Keep& keep,
                                 typename Op::Fragment (&out)[W / 16][Shape<Op, W>::tiles]) {
  using S = Shape<Op, W>;
  const Network& net = instance.net;
  const int d = static_cast<int>(net.field.coord_dim), used = instance.used();
#pragma unroll
  for (int p = 0; p < S::pairs; ++p) {
    if (p < used) {
      float c[S::tiles][8];
      start_with_bias(shared_at<const float>(net.plan.biases) + 16 * p, c);
      const float* w = shared_at<const float>(net.plan.first) + 16 * p + fragment_column();
      const float* v = x + fragment_row() * d;
      for (int i = 0; i < d; ++i, w += W, ++v) {
        const float factor[4] = {w[0], w[1], w[8], w[9]};
#pragma unroll
        for (int m = 0; m < S::tiles; ++m) {
          const float near = v[16 * m * d], far = v[(16 * m + 8) * d];
#pragma unroll
          for (int e = 0; e < 8; ++e) {
            c[m][e] = fmaf(factor[(e & 1) + (e & 4) / 2], (e & 2) != 0 ? far : near, c[m][e]);
          }
        }
      }
      finish<Op>(net, 0, p, c, keep, out[p]);
    }
  }
}

template <class Op, int W, class Keep>
GINR_DEVICE void first_layer_encoded(const Instance& instance, const float* x, const Keep& keep,
                                     typename Op::Fragment (&out)[W / 16][Shape<Op, W>::tiles]) {
  using S = Shape<Op, W>;
  const Network& net = instance.net;
  const int d = static_cast<int>(net.field.coord_dim), used = instance.used();
  const int input = static_cast<int>(net.field.input_dim());
  float c[S::pairs][S::tiles][8];
#pragma unroll
  for (int p = 0; p < S::pairs; ++p) {
    start_with_bias(shared_at<const float>(net.plan.biases) + 16 * p, c[p]);
  }
  for (int chunk = 0; chunk < net.plan.chunks; ++chunk) {
    const uint4* block = operand_block<Op, W, false, Keep::wanted>(instance, chunk);
    const int left = (input - chunk * W + 15) / 16;
    for (int s = 0; s < (left < S::pairs ? left : S::pairs); ++s) {
      typename Op::Fragment a[S::tiles];
#pragma unroll
      for (int m = 0; m < S::tiles; ++m) {
        a[m] = features<Op>(net, x + 16 * m * d, chunk * W + 16 * s);
      }
#pragma unroll
      for (int p = 0; p < S::pairs; ++p) {
        if (p < used) {
          uint4 b[Op::kPackets];
          load_packets<Op>(block + (p * S::pairs + s) * S::packet, b);
#pragma unroll
          for (int m = 0; m < S::tiles; ++m) Op::multiply(c[p][m], a[m], b);
        }
      }
    }
  }
#pragma unroll
  for (int p = 0; p < S::pairs; ++p) {
    if (p < used) finish<Op>(net, 0, p, c[p], keep, out[p]);
  }
}

// c (rows, 16) += in (rows, W) b, `used` steps of 16 depths.
template <class Op, int W>
GINR_DEVICE void multiply_row(const typename Op::Fragment (&in)[W / 16][Shape<Op, W>::tiles],
                              const uint4* packets, int used, float (&c)[Shape<Op, W>::tiles][8]) {
  using S = Shape<Op, W>;
#pragma unroll
  for (int s = 0; s < S::pairs; ++s) {
    if (s < used) {
      uint4 b[Op::kPackets];
      load_packets<Op>(packets + s * S::packet, b);
#pragma unroll
      for (int m = 0; m < S::tiles; ++m) Op::multiply(c[m], in[s][m], b);
    }
  }
}

// The last hidden activations of a warp's samples at x [rows][d].
template <class Op, int W, class Keep>
GINR_DEVICE void hidden_activations(const Instance& instance, const float* x, const Keep& keep,
                                    typename Op::Fragment (&a)[W / 16][Shape<Op, W>::tiles]) {
  using S = Shape<Op, W>;
  const Network& net = instance.net;
  const int used = instance.used();
  if (net.field.frequencies == 0) {
    first_layer_raw<Op, W>(instance, x, keep, a);
  } else {
    first_layer_encoded<Op, W>(instance, x, keep, a);
  }
  for (int l = 1; l <= static_cast<int>(net.field.hidden_layers); ++l) {
    const uint4* block =
        operand_block<Op, W, false, Keep::wanted>(instance, net.plan.chunks + l - 1);
    typename Op::Fragment out[Keep::reload ? 1 : S::pairs][S::tiles];
#pragma unroll
    for (int p = 0; p < S::pairs; ++p) {
      if (p < used) {
        float c[S::tiles][8];
        start_with_bias(shared_at<const float>(net.plan.biases) + l * W + 16 * p, c);
        multiply_row<Op, W>(a, block + p * S::pairs * S::packet, used, c);
        finish<Op>(net, l, p, c, keep, out[Keep::reload ? 0 : p]);
      }
    }
    if (Keep::reload) __syncwarp();  // also keeps the compiler from keeping them in registers
#pragma unroll
    for (int p = 0; p < S::pairs; ++p) {
#pragma unroll
      for (int m = 0; m < S::tiles; ++m) {
        if constexpr (Keep::reload) {
          if (p < used) a[p][m] = Op::get(keep.at(l, p, m, false));
        } else {
          a[p][m] = out[p][m];
        }
      }
    }
  }
}

// Values (rows, 16) of which out_dim columns count, and their slopes if wanted.
template <class Op, int W, bool Slope>
GINR_DEVICE void last_layer(const Instance& instance,
                            const typename Op::Fragment (&a)[W / 16][Shape<Op, W>::tiles],
                            float (&c)[Shape<Op, W>::tiles][8],
                            float (&slope)[Shape<Op, W>::tiles][8]) {
  const Network& net = instance.net;
  const int hidden = static_cast<int>(net.field.layers()) - 1;
  start_with_bias(shared_at<const float>(net.plan.biases) + hidden * W, c);
  multiply_row<Op, W>(a, shared_at<const uint4>(net.plan.last) + lane(), instance.used(), c);
#pragma unroll
  for (int m = 0; m < Shape<Op, W>::tiles; ++m) {
    activate<Op::kPolynomials, Slope>(net.field.out_activation, net.field.w0, c[m], slope[m]);
  }
}

}  // namespace cuda
}  // namespace field_mlp
}  // namespace ginr
