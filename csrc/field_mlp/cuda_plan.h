// How a CUDA block of field_mlp (and of volume_render) lays out its shared memory. Host and device.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/field_layout.h"

namespace ginr {
namespace field_mlp {
namespace cuda {

constexpr int kMostWidth = 128;
constexpr int kMostOut = 16;
constexpr int kMostCoords = 16;
constexpr int kMostFrequencies = 128;

// What the plan needs to know of a kernel: see Shape in cuda_layers.cuh.
struct KernelSizes {
  int width;         // W: hidden widths are padded to it with zeros
  int warps;
  int rows;          // samples of a warp at a time
  int packets;       // of 16 bytes for 16 depths, 16 columns and a lane; Operand::kPackets
  int back_packets;  // the same for gradients
  int back_words;    // Operand::Back::kWords
};

// Byte offsets into the dynamic shared memory. Operand blocks are W x W: the hidden layers, and
// before them the first one in blocks of W features if the coordinate is encoded.
struct Plan {
  int32_t chunks;    // operand blocks of an encoded first layer
  int32_t blocks;    // chunks + hidden layers
  bool resident;     // every operand block has its own place; otherwise they take turns in one
  bool kept_shared;  // activations kept for the backward are in shared memory
  int32_t kept_packets;  // of 16 bytes, that one block keeps
  int32_t first;         // float [d][W], first layer of a raw coordinate
  int32_t frequencies;   // float [2][n]
  int32_t biases;        // float [layers - 1][W], [16]
  int32_t last;          // packets of the last layer
  int32_t last_turned;   // packets of its transpose
  int32_t coords;        // float [warps * rows][d]
  int32_t coord_sums;    // float [warps * rows][4][d], gradients
  int32_t staged_grad;   // words [W][stride]
  int32_t staged_input;  // the same
  int32_t kept;
  int32_t slots;         // operand blocks; their transposes after them
  int32_t extra;         // for the caller
  int32_t bytes;         // of all
  int32_t slot_bytes;
  bool turned;           // there are transposes

  GINR_HOST_DEVICE int32_t places() const { return turned ? 2 * blocks : blocks; }
};

// Rows of the staged operands, in words: four more than a multiple of 32 banks.
GINR_HOST_DEVICE inline int staged_stride(int rows, int words) { return rows / 16 * words + 4; }

inline Plan make_plan(const Field& field, const KernelSizes& sizes, bool backward, int32_t extra,
                      int32_t limit) {
  constexpr int kLane = 32 * 16;  // bytes of a packet of every lane
  Plan plan = {};
  const int pairs = sizes.width / 16;
  const int d = static_cast<int>(field.coord_dim), layers = static_cast<int>(field.layers());
  const int samples = sizes.warps * sizes.rows;
  int32_t top = 0;
  const auto take = [&top](int32_t bytes) {
    const int32_t at = top;
    top += (bytes + 15) / 16 * 16;
    return at;
  };
  if (field.frequencies > 0) {
    plan.chunks = static_cast<int32_t>((field.input_dim() + sizes.width - 1) / sizes.width);
    plan.frequencies = take(static_cast<int32_t>(2 * field.frequencies) * 4);
  } else {
    plan.first = take(d * sizes.width * 4);
  }
  plan.blocks = plan.chunks + static_cast<int32_t>(field.hidden_layers);
  plan.biases = take(((layers - 1) * sizes.width + 16) * 4);
  plan.last = take(pairs * sizes.packets * kLane);
  plan.coords = take(samples * d * 4);
  plan.extra = take(extra);
  const int block = pairs * pairs * kLane;
  plan.slot_bytes = block * (backward ? std::max(sizes.packets, sizes.back_packets)
                                      : sizes.packets);
  plan.turned = backward;
  if (backward) {
    plan.last_turned = take(pairs * sizes.back_packets * kLane);
    plan.coord_sums = take(samples * 4 * d * 4);
    const int32_t staged = sizes.width * staged_stride(samples, sizes.back_words) * 4;
    plan.staged_grad = take(staged);
    plan.staged_input = take(staged);
    const int of_layer = pairs * (sizes.rows / 16) * sizes.back_packets * kLane / 16;
    plan.kept_packets = sizes.warps * (layers - 1) * of_layer *
                        (field.activation == Activation::sine ? 2 : 1);
  }
  const int32_t least = std::min<int32_t>(plan.blocks, 1) * plan.slot_bytes;
  const int64_t wanted = static_cast<int64_t>(plan.places()) * plan.slot_bytes;
  plan.resident = top + wanted <= limit;
  plan.slots = take(plan.resident ? static_cast<int32_t>(wanted) : least);
  if (backward && static_cast<int64_t>(top) + plan.kept_packets * INT64_C(16) <= limit) {
    plan.kept_shared = true;
    plan.kept = take(plan.kept_packets * 16);
  }
  plan.bytes = top;
  return plan;
}

}  // namespace cuda
}  // namespace field_mlp
}  // namespace ginr
