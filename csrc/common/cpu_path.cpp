#include "common/cpu_path.h"

#include <atomic>
#include <stdexcept>

#if defined(GINR_HAS_amx)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ginr {
namespace {

std::atomic<int> g_path{-1};

#if defined(GINR_HAS_amx)
// Whether the processor has AMX for bfloat16 and the system lets this process use it, which Linux
// has to be asked for once.
bool tiles_permitted() {
  constexpr unsigned kTiles = 1u << 24, kBf16Tiles = 1u << 22;  // CPUID leaf 7, EDX
  constexpr long kRequestPermission = 0x1023, kTileData = 18;   // ARCH_REQ_XCOMP_PERM, XTILEDATA
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if ((d & kTiles) == 0 || (d & kBf16Tiles) == 0) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

CpuPath fastest() {
  CpuPath best = CpuPath::portable;
  for (CpuPath path : compiled_paths()) {
    if (supported(path)) best = path;
  }
  return best;
}

}  // namespace

const char* name(CpuPath path) {
  switch (path) {
    case CpuPath::amx: return "amx";
    case CpuPath::avx512: return "avx512";
    case CpuPath::avx2: return "avx2";
    default: return "portable";
  }
}

std::vector<CpuPath> compiled_paths() {
  return {
    CpuPath::portable,
#if defined(GINR_HAS_avx2)
    CpuPath::avx2,
#endif
#if defined(GINR_HAS_avx512)
    CpuPath::avx512,
#endif
#if defined(GINR_HAS_amx)
    CpuPath::amx,
#endif
  };
}

bool supported(CpuPath path) {
#if defined(GINR_HAS_avx512)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (path == CpuPath::avx2) return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl");
  if (path == CpuPath::avx512) return avx512;
#endif
#if defined(GINR_HAS_amx)
  if (path == CpuPath::amx) {
    static const bool permitted = tiles_permitted();
    return avx512 && __builtin_cpu_supports("avx512bf16") && permitted;
  }
#endif
  return path == CpuPath::portable;
}

CpuPath cpu_path() {
  int path = g_path.load(std::memory_order_relaxed);
  if (path < 0) {
    path = static_cast<int>(fastest());
    g_path.store(path, std::memory_order_relaxed);
  }
  return static_cast<CpuPath>(path);
}

bool bf16_products() {
#if defined(GINR_HAS_avx512_bf16)
  return cpu_path() >= CpuPath::avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

void force_cpu_path(const std::string& wanted) {
  if (wanted.empty()) {
    g_path.store(static_cast<int>(fastest()));
    return;
  }
  std::string usable;
  for (CpuPath path : compiled_paths()) {
    if (!supported(path)) continue;
    if (wanted == name(path)) {
      g_path.store(static_cast<int>(path));
      return;
    }
    usable += (usable.empty() ? "" : ", ") + std::string(name(path));
  }
  throw std::invalid_argument("expected a vector path this build and processor have (" + usable +
                              "), got '" + wanted + "'");
}

}  // namespace ginr
