#include "field_mlp/packed_weights.h"

#include <algorithm>

#include "common/cpu_path.h"
#include "common/parallel.h"
#include "common/scratch.h"

namespace ginr {
namespace field_mlp {
namespace cpu {
namespace {

// Fewer samples would not repay packing the weights.
constexpr int64_t kLeastSamples = 512;
constexpr int64_t kPackedFloats = 16 << 20;

#if defined(GINR_HAS_amx)
// The packed matrix of a layer: W_l, or its transpose.
void pack(const Field& field, const float* row, int64_t l, bool transposed, uint16_t* split) {
  const int64_t rows = field.rows(l), columns = field.columns(l);
  const float* matrix = row + field.weight(l);
  if (transposed) {
    split += split_transpose(field, l);
    amx::pack_a({matrix, 1, columns}, columns, rows, kFieldParts, split);
  } else {
    amx::pack_a({matrix, columns, 1}, rows, columns, kFieldParts, split + split_weight(field, l));
  }
}
#endif

// Whether a field's weights are packed, with the path in use and so many samples an instance. Those
// of a field that has more than all that are packed at a time would not stay in any cache.
bool packs(const Field& field, int64_t samples) {
#if defined(GINR_HAS_amx)
  const int64_t floats = split_weight(field, field.layers()) / 2;
  return cpu_path() == CpuPath::amx && samples >= kLeastSamples && floats > 0 &&
         floats <= kPackedFloats;
#else
  (void)field, (void)samples;
  return false;
#endif
}

}  // namespace

PackedWeights::PackedWeights(const Field& field, const float* rows, const Instances& some,
                             int64_t samples, bool transposed, int threads)
    : rows_(rows),
      first_(some.first),
      parameters_(field.parameters()),
      split_size_(split_weight(field, field.layers())),
      split_(nullptr) {
#if defined(GINR_HAS_amx)
  if (!packs(field, samples)) return;
  static thread_local Scratch t_split;
  uint16_t* split = reinterpret_cast<uint16_t*>(t_split.floats(some.count * split_size_ / 2));
  const int64_t ways = transposed ? 2 : 1, layers = field.layers();
  parallel_for(some.count * layers * ways, threads, [&](int64_t task) {
    const int64_t b = task / (layers * ways), l = task / ways % layers;
    if (!has_split(field, l)) return;
    pack(field, rows + (some.first + b) * parameters_, l, task % ways == 1,
         split + b * split_size_);
  });
  split_ = split;
#else
  (void)samples, (void)transposed, (void)threads;
#endif
}

int64_t packed_together(const Field& field, int64_t batch, int64_t samples, int threads) {
  if (!packs(field, samples)) return std::max<int64_t>(1, batch);
  return std::max<int64_t>(threads, kPackedFloats / (split_weight(field, field.layers()) / 2));
}

}  // namespace cpu
}  // namespace field_mlp
}  // namespace ginr
