#include "split_gemm/tiles.h"

namespace ginr {
namespace GINR_SIMD {
namespace {

using Floats = Vec<float>;

}  // namespace

void pack_a(const split_gemm::Operand& from, int64_t rows, int64_t depth, int parts, uint16_t* to) {
  (parts == 3 ? tiles::pack<3, false> : tiles::pack<2, false>)(from, rows, depth, to);
}

void pack_b(const split_gemm::Operand& from, int64_t rows, int64_t depth, uint16_t* to) {
  tiles::pack<kGemmParts, true>(from, rows, depth, to);
}

void multiply(const PanelTask& task) {
  tiles::multiply<kGemmParts>(
      task.a, task.rows, task.b, task.columns, task.depth,
      [&](int64_t r, int64_t c, int64_t n, Floats sum) {
        float* out = task.out + r * task.out_row + c;
        if (task.add) {
          sum = sum + Floats::load_first(out, n);
        } else if (task.bias != nullptr) {
          sum = sum + Floats::load_first(task.bias + c, n);
        }
        if (task.relu) sum = Floats::max(Floats::broadcast(0.0f), sum);
        sum.store_first(out, n);
      });
}

}  // namespace GINR_SIMD
}  // namespace ginr
