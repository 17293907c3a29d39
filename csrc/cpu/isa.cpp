// The instruction set, by CPUID or by CAPMOE_CPU_ISA.
#include "isa.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace capmoe::cpu {
namespace {

constexpr const char* kNames[] = {"scalar", "avx2", "avx512", "avx512_bf16", "amx"};

#if defined(__x86_64__)

// Tiles are state that Linux saves only for a process that asked.
bool amx_permitted() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool tiles = d >> 24 & 1, bf16 = d >> 22 & 1;
  return tiles && bf16 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Isa best_isa() {
  __builtin_cpu_init();
  const auto all = [](auto... has) { return (has && ...); };
  if (!all(__builtin_cpu_supports("avx2"), __builtin_cpu_supports("fma"), __builtin_cpu_supports("f16c"))) {
    return Isa::scalar;
  }
  if (!all(__builtin_cpu_supports("avx512f"), __builtin_cpu_supports("avx512bw"), __builtin_cpu_supports("avx512dq"),
           __builtin_cpu_supports("avx512vl"))) {
    return Isa::avx2;
  }
  if (!__builtin_cpu_supports("avx512bf16")) return Isa::avx512;
  return amx_permitted() ? Isa::amx : Isa::avx512_bf16;
}

#else

Isa best_isa() { return Isa::scalar; }

#endif

// CAPMOE_CPU_ISA, for tests, chooses a lesser one.
Isa choose_isa() {
  const Isa best = best_isa();
  const char* wanted = std::getenv("CAPMOE_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  const auto* end = std::end(kNames);
  const auto* found = std::find(std::begin(kNames), end, std::string(wanted));
  if (found == end) {
    throw std::runtime_error("CAPMOE_CPU_ISA is '" + std::string(wanted) +
                             "', not scalar, avx2, avx512, avx512_bf16 or amx");
  }
  const auto isa = static_cast<Isa>(found - std::begin(kNames));
  if (isa > best) {
    throw std::runtime_error("CAPMOE_CPU_ISA is '" + std::string(wanted) + "', but this processor's best is '" +
                             kNames[static_cast<int>(best)] + "'");
  }
  return isa;
}

}  // namespace

Isa chosen_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

}  // namespace capmoe::cpu
