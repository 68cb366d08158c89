// The backward of a field on the samples of one block.
//
// The forward runs again and keeps, for every hidden layer, its values (and slopes, for sines) as
// fragments that only the lane that wrote them reads. Then, layer by layer from the last: gradients
// d_l of the layer's sums and its inputs a_l are staged in shared memory, all warps together add
// d_l^T a_l to the block's partial sums, and each warp takes its own d_l through W_l^T in
// registers.
//
// In networks of 16-bit operands all of this is bfloat16: gradients of a mean over many samples
// would vanish in float16.
#pragma once

#include "field_mlp/cuda_coord_grads.cuh"
#include "field_mlp/cuda_layers.cuh"

namespace ginr {
namespace field_mlp {
namespace cuda {

// What a backward block is given.
struct BackwardBlock {
  float* partial;     // (P) sums over the samples of this block, or null
  uint4* kept;        // kept activations of this block
  bool first;         // the sums are empty so far
  const float* grad;  // of the values at this warp's first sample
  float* grad_coord;  // of its coordinates, or null
  int count;          // how many of the warp's samples there are
};

// Fragments of hidden activations, as a lane keeps them.
template <class Op, int W>
struct Kept {
  static constexpr bool wanted = true;
  // Registers do not hold two layers at this size: the next one is read back from what is kept.
  static constexpr bool reload = Op::kWide && W == 128;
  using Back = typename Op::Back;
  static constexpr int kFragment = Back::kPackets * kWarp;
  static constexpr int kLayer = W / 16 * Shape<Op, W>::tiles * kFragment;
  uint4* base;  // of this lane
  bool sine;

  GINR_DEVICE uint4* at(int l, int p, int m, bool slope) const {
    const int layer = sine ? 2 * l + (slope ? 1 : 0) : l;
    return base + layer * kLayer + (p * Shape<Op, W>::tiles + m) * kFragment;
  }
  GINR_DEVICE void operator()(int l, int p, int m, const float (&c)[8],
                              const float (&slope)[8]) const {
    Back::put(Back::from(c), at(l, p, m, false));
    if (sine) Back::put(Back::from(slope), at(l, p, m, true));
  }
  // d *= f'(layer l)
  GINR_DEVICE void through_activation(Activation f, int l, int p, int m, float (&d)[8]) const {
    if (f == Activation::none) return;
    float c[8];
    Back::to(Back::get(at(l, p, m, f == Activation::sine)), c);
    if (f == Activation::sine) {
#pragma unroll
      for (int i = 0; i < 8; ++i) d[i] *= c[i];
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) d[i] = c[i] <= 0.0f ? 0.0f : d[i];
    }
  }
};

// The staged operands of a block: [column][words of all its samples].
template <class Op, int W>
struct Staged {
  using Back = typename Op::Back;
  uint32_t* grad;
  uint32_t* input;
  int stride;
  int groups;  // of 16 samples

  GINR_DEVICE explicit Staged(const Plan& plan)
      : grad(shared_at<uint32_t>(plan.staged_grad)),
        input(shared_at<uint32_t>(plan.staged_input)),
        stride(staged_stride(blockDim.x / kWarp * Shape<Op, W>::rows, Back::kWords)),
        groups(blockDim.x / kWarp * Shape<Op, W>::tiles) {}

  // This warp's fragment of columns 16 p on, row tile m.
  GINR_DEVICE void put(uint32_t* operand, int p, int m,
                       const typename Back::Fragment& fragment) const {
    const int group = warp() * Shape<Op, W>::tiles + m;
    Back::stage(fragment, operand + 16 * p * stride + group * Back::kWords, stride);
  }

  // grad^T input into sums [rows][row_stride], by all warps in pieces of 16 x 32.
  GINR_DEVICE void add_product(float* sums, int rows, int columns, int row_stride,
                               bool first) const {
    const int across = (columns + 31) / 32, pieces = (rows + 15) / 16 * across;
    for (int piece = warp(); piece < pieces; piece += blockDim.x / kWarp) {
      const int r0 = piece / across * 16, c0 = piece % across * 32;
      float c[2][8];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const int r = r0 + element_row(i), column = c0 + 16 * h + element_column(i);
          const bool inside = !first && r < rows && column < columns;
          c[h][i] = inside ? sums[static_cast<int64_t>(r) * row_stride + column] : 0.0f;
        }
      }
      for (int group = 0; group < groups; ++group) {
        const auto a = Back::staged_a(grad + r0 * stride + group * Back::kWords, stride);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          if (c0 + 16 * h < columns) {
            uint4 b[Back::kPackets];
            Back::staged_b(input + (c0 + 16 * h) * stride + group * Back::kWords, stride, b);
            Back::multiply(c[h], a, b);
          }
        }
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const int r = r0 + element_row(i), column = c0 + 16 * h + element_column(i);
          if (r < rows && column < columns) {
            sums[static_cast<int64_t>(r) * row_stride + column] = c[h][i];
          }
        }
      }
    }
  }

  // The sums of the staged gradients over the samples.
  GINR_DEVICE void add_bias(float* sums, int rows, bool first) const {
    const int packets = groups * Back::kWords / 4;
    for (int r = threadIdx.x; r < rows; r += blockDim.x) {
      const uint4* from = reinterpret_cast<const uint4*>(grad + r * stride);
      float total = first ? 0.0f : sums[r];
      for (int i = 0; i < packets; ++i) total += Back::sum(from[i]);
      sums[r] = total;
    }
  }

  // grad^T coords for raw coordinates [samples][d], element by element.
  GINR_DEVICE void add_raw(float* sums, const float* coords, int rows, int d, bool first) const {
    for (int i = threadIdx.x; i < rows * d; i += blockDim.x) {
      const uint32_t* from = grad + i / d * stride;
      float total = first ? 0.0f : sums[i];
      for (int s = 0; s < 16 * groups; ++s) {
        const int word = s / 16 * Back::kWords + s % Back::kWords;
        total = fmaf(Back::staged(from[word], s % 16 / 8), coords[s * d + i % d], total);
      }
      sums[i] = total;
    }
  }
};

// The samples' gradients of layer l, from the layer above: through W^T and the activation. With
// Reload they go to `out` by way of the place of layer l + 1, whose values are no longer needed.
template <class Op, int W, int Steps, bool Reload>
GINR_DEVICE void chain(const Instance& instance, const Kept<Op, W>& kept, int l,
                       const typename Op::Back::Fragment (&d)[Steps][Shape<Op, W>::tiles],
                       const uint4* packets, int steps,
                       typename Op::Back::Fragment (&out)[W / 16][Shape<Op, W>::tiles]) {
  using Back = typename Op::Back;
  constexpr int kTiles = Shape<Op, W>::tiles;
  const int used = instance.used();
#pragma unroll
  for (int p = 0; p < W / 16; ++p) {
    if (p < used) {
      float c[kTiles][8] = {};
#pragma unroll
      for (int s = 0; s < Steps; ++s) {
        if (s < steps) {
          uint4 b[Back::kPackets];
          load_packets<Back>(packets + (p * Steps + s) * Back::kPackets * kWarp, b);
#pragma unroll
          for (int m = 0; m < kTiles; ++m) Back::multiply(c[m], d[s][m], b);
        }
      }
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        kept.through_activation(instance.net.field.activation, l, p, m, c[m]);
        if (Reload) {
          Back::put(Back::from(c[m]), kept.at(l + 1, p, m, false));
        } else {
          out[p][m] = Back::from(c[m]);
        }
      }
    }
  }
  if (!Reload) return;
  __syncwarp();
#pragma unroll
  for (int p = 0; p < W / 16; ++p) {
    if (p < used) {
#pragma unroll
      for (int m = 0; m < kTiles; ++m) out[p][m] = Back::get(kept.at(l + 1, p, m, false));
    }
  }
}

// The first layer, whose gradients are `grad`.
template <class Op, int W>
GINR_DEVICE void first_layer_backward(
    const Instance& instance, const BackwardBlock& block, const Staged<Op, W>& staged,
    const float* x, const typename Op::Back::Fragment (&grad)[W / 16][Shape<Op, W>::tiles]) {
  using S = Shape<Op, W>;
  using Back = typename Op::Back;
  const Network& net = instance.net;
  const int d = static_cast<int>(net.field.coord_dim), width = static_cast<int>(net.field.width);
  float* sums = shared_at<float>(net.plan.coord_sums) + warp() * S::rows * 4 * d;
  if (net.field.frequencies == 0) {
    __syncthreads();
    if (block.partial != nullptr) {
      staged.add_raw(block.partial, shared_at<const float>(net.plan.coords), width, d, block.first);
    }
    if (block.grad_coord != nullptr) raw_coord_sums<Op, W>(instance, grad, sums);
  } else {
    const int input = static_cast<int>(net.field.input_dim());
    for (int i = lane(); i < S::rows * 4 * d; i += kWarp) sums[i] = 0.0f;
    for (int chunk = 0; chunk < net.plan.chunks; ++chunk) {
      const int columns = input - chunk * W < W ? input - chunk * W : W;
      if (block.partial != nullptr) {
        for (int p = 0; p < (columns + 15) / 16; ++p) {
#pragma unroll
          for (int m = 0; m < S::tiles; ++m) {
            staged.put(staged.input, p, m,
                       features<Back>(net, x + 16 * m * d, chunk * W + 16 * p));
          }
        }
        __syncthreads();
        staged.add_product(block.partial + chunk * W, width, columns, input, block.first);
      }
      if (block.grad_coord != nullptr) {
        const uint4* packets = operand_block<Back, W, true, true>(instance, chunk);
        encoded_coord_sums<Op, W>(instance, x, chunk, packets, grad, sums);
      }
      __syncthreads();
    }
  }
  if (block.partial != nullptr && net.field.bias) {
    staged.add_bias(block.partial + net.field.bias_at(0), width, block.first);
  }
  if (block.grad_coord != nullptr) store_coord_grads(sums, d, block.count, block.grad_coord);
}

// The whole of it. x [rows][d] are this warp's coordinates. All threads of the block call this
// together.
template <class Op, int W>
GINR_DEVICE void backward_samples(const Instance& instance, const BackwardBlock& block,
                                  const float* x) {
  using S = Shape<Op, W>;
  using Back = typename Op::Back;
  const Network& net = instance.net;
  const Field& field = net.field;
  const int width = static_cast<int>(field.width), hidden = static_cast<int>(field.layers()) - 1;
  const int used = instance.used(), out = static_cast<int>(field.out_dim);
  const bool sine = field.activation == Activation::sine;
  const Kept<Op, W> kept{
      block.kept + warp() * hidden * (sine ? 2 : 1) * Kept<Op, W>::kLayer + lane(), sine};
  const Staged<Op, W> staged(net.plan);
  typename Back::Fragment d[S::pairs][S::tiles];
  {
    float slope[S::tiles][8];
    {
      typename Op::Fragment a[S::pairs][S::tiles];
      float value[S::tiles][8];
      hidden_activations<Op, W>(instance, x, kept, a);
      last_layer<Op, W, true>(instance, a, value, slope);
    }
    typename Back::Fragment last[1][S::tiles];
#pragma unroll
    for (int m = 0; m < S::tiles; ++m) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int row = 16 * m + element_row(i), column = element_column(i);
        const bool inside = row < block.count && column < out;
        slope[m][i] = inside ? slope[m][i] * block.grad[row * out + column] : 0.0f;
      }
      last[0][m] = Back::from(slope[m]);
      staged.put(staged.grad, 0, m, last[0][m]);
    }
    chain<Op, W, 1, false>(instance, kept, hidden - 1, last,
                    shared_at<const uint4>(net.plan.last_turned) + lane(), 1, d);
  }
  for (int l = hidden; l >= 1; --l) {
    // Here d holds the gradients of layer l - 1, and those of layer l are staged.
    const int rows = static_cast<int>(field.rows(l));
    if (block.partial != nullptr) {
      for (int p = 0; p < used; ++p) {
#pragma unroll
        for (int m = 0; m < S::tiles; ++m) {
          staged.put(staged.input, p, m, Back::get(kept.at(l - 1, p, m, false)));
        }
      }
      __syncthreads();
      staged.add_product(block.partial + field.weight(l), rows, width, width, block.first);
      if (field.bias) staged.add_bias(block.partial + field.bias_at(l), rows, block.first);
      __syncthreads();
    }
#pragma unroll
    for (int p = 0; p < S::pairs; ++p) {
      if (p < used) {
#pragma unroll
        for (int m = 0; m < S::tiles; ++m) staged.put(staged.grad, p, m, d[p][m]);
      }
    }
    if (l == 1) break;
    const uint4* packets = operand_block<Back, W, true, true>(instance, net.plan.chunks + l - 2);
    if constexpr (Kept<Op, W>::reload) {
      chain<Op, W, S::pairs, true>(instance, kept, l - 2, d, packets, used, d);
    } else {
      typename Back::Fragment next[S::pairs][S::tiles];
      chain<Op, W, S::pairs, false>(instance, kept, l - 2, d, packets, used, next);
#pragma unroll
      for (int p = 0; p < S::pairs; ++p) {
#pragma unroll
        for (int m = 0; m < S::tiles; ++m) d[p][m] = next[p][m];
      }
    }
  }
  first_layer_backward<Op, W>(instance, block, staged, x, d);
  __syncthreads();
}

}  // namespace cuda
}  // namespace field_mlp
}  // namespace ginr
