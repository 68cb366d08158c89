#include "split_gemm/cpu.h"

#include <algorithm>

#include "common/cpu_path.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "split_gemm/kernels.h"

namespace ginr {
namespace split_gemm {
namespace cpu {
#if defined(GINR_HAS_amx)
namespace {

// Most of the depth and of B's rows that are packed at a time: 1 MB, half of a second-level cache.
constexpr int64_t kDepth = 512;
constexpr int64_t kColumns = 512;
// Below this many multiply-adds waking a thread costs more than it saves.
constexpr int64_t kSerialWork = 1 << 20;

int64_t divided(int64_t count, int64_t by) { return (count + by - 1) / by; }

uint16_t* packed(Scratch& scratch, int64_t count) {
  return reinterpret_cast<uint16_t*>(scratch.floats(count / 2));
}

Operand part(const Operand& operand, int64_t row, int64_t k) {
  return {operand.data + row * operand.row + k * operand.step, operand.row, operand.step};
}

// Equal parts of a size, at most `most`, in whole steps.
int64_t equal_parts(int64_t size, int64_t most) {
  return divided(divided(size, divided(size, most)), kDepthStep) * kDepthStep;
}

}  // namespace

bool product(const Problem& problem, int threads) {
  if (cpu_path() != CpuPath::amx) return false;
  static thread_local Scratch t_a, t_b;
  if (problem.rows * problem.columns * problem.depth < kSerialWork) threads = 1;
  const int64_t columns = equal_parts(problem.columns, kColumns);
  const int64_t depth = equal_parts(problem.depth, kDepth);
  const int64_t panel = packed_panel(depth, kGemmParts);
  uint16_t* b = packed(t_b, divided(columns, kPanelRows) * panel);
  for (int64_t c = 0; c < problem.columns; c += columns) {
    const int64_t wide = std::min(columns, problem.columns - c);
    for (int64_t k = 0; k < problem.depth; k += depth) {
      const int64_t deep = std::min(depth, problem.depth - k);
      parallel_for(divided(wide, kPanelRows), threads, [&](int64_t i) {
        const int64_t first = i * kPanelRows;
        amx::pack_b(part(problem.b, c + first, k), std::min(kPanelRows, wide - first), deep,
                    b + i * packed_panel(deep, kGemmParts));
      });
      // A task owns its outputs: sums have one order, however many threads there are.
      parallel_for(divided(problem.rows, kPanelRows), threads, [&](int64_t i) {
        const int64_t first = i * kPanelRows;
        uint16_t* a = packed(t_a, panel);
        PanelTask task;
        task.rows = std::min(kPanelRows, problem.rows - first);
        amx::pack_a(part(problem.a, first, k), task.rows, deep, kGemmParts, a);
        task.a = a;
        task.b = b;
        task.columns = wide;
        task.depth = deep;
        task.bias = problem.bias == nullptr ? nullptr : problem.bias + c;
        task.add = k > 0;
        task.relu = problem.relu && k + deep == problem.depth;
        task.out = problem.out + first * problem.out_row + c;
        task.out_row = problem.out_row;
        amx::multiply(task);
      });
    }
  }
  return true;
}
#else
bool product(const Problem&, int) { return false; }
#endif

}  // namespace cpu
}  // namespace split_gemm
}  // namespace ginr
