// Chooses the instruction set, once: the best this processor has, or what FUSEDRNN_ISA asks for if it has that.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "../cells.h"
#include "isa.h"

#ifdef __APPLE__
#include <sys/sysctl.h>
#elif defined(__linux__) && defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace fusedrnn {
namespace {

enum class Isa { kBaseline, kAvx2, kAvx512, kAvx512Vnni, kAvx512Bf16, kNeonBf16 };
constexpr Isa kAll[] = {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vnni, Isa::kAvx512Bf16, Isa::kNeonBf16};
constexpr const char* kNames[] = {"DEFAULT", "AVX2", "AVX512", "AVX512_VNNI", "AVX512_BF16", "NEON_BF16"};

[[maybe_unused]] bool has_neon_bf16() {
#if defined(__linux__) && defined(__aarch64__)
  return getauxval(AT_HWCAP2) & HWCAP2_BF16;
#elif defined(__APPLE__)
  int has = 0;
  size_t size = sizeof has;
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &has, &size, nullptr, 0) == 0 && has;
#else
  return false;
#endif
}

#ifdef FUSEDRNN_X86_ISAS
bool has_x86(Isa isa) {
  __builtin_cpu_init();
  switch (isa) {
    case Isa::kAvx512Bf16:
      return has_x86(Isa::kAvx512Vnni) && __builtin_cpu_supports("avx512bf16");
    case Isa::kAvx512Vnni:
      return has_x86(Isa::kAvx512) && __builtin_cpu_supports("avx512vnni");
    case Isa::kAvx512:
      return has_x86(Isa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512cd");
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    default:
      return false;
  }
}
#endif

bool has(Isa isa) {
#ifdef FUSEDRNN_X86_ISAS
  if (has_x86(isa)) return true;
#elif defined(FUSEDRNN_ARM_ISAS)
  if (isa == Isa::kNeonBf16) return has_neon_bf16();
#endif
  return isa == Isa::kBaseline;
}

// AMD's processors multiply pairs of bfloat16 twice as fast as floats (Zen 4: 213 and 97 GFLOP/s a core). Intel's that
// were measured do it at half the pace of floats (171 and 335 on two cores): there it is not chosen.
Isa best_isa() {
#ifdef FUSEDRNN_X86_ISAS
  if (has(Isa::kAvx512Bf16) && __builtin_cpu_is("amd")) return Isa::kAvx512Bf16;
  for (Isa isa : {Isa::kAvx512Vnni, Isa::kAvx512, Isa::kAvx2})
    if (has(isa)) return isa;
#endif
  return has(Isa::kNeonBf16) ? Isa::kNeonBf16 : Isa::kBaseline;
}

Isa choose_isa() {
  const char* wanted = std::getenv("FUSEDRNN_ISA");
  if (!wanted || !*wanted) return best_isa();
  std::string all;
  for (Isa isa : kAll) {
    if (!has(isa)) continue;
    const char* name = kNames[static_cast<int>(isa)];
    if (!std::strcmp(wanted, name)) return isa;
    all += std::string(all.empty() ? "" : ", ") + name;
  }
  throw std::invalid_argument(std::string("FUSEDRNN_ISA=") + wanted +
                              " is not supported on this CPU; available: " + all);
}

Isa isa() {
  static const Isa chosen = choose_isa();
  return chosen;
}

}  // namespace

const char* cpu_capability() { return kNames[static_cast<int>(isa())]; }

template <class Cell, class T>
CpuDriver<T> cpu_driver() {
#ifdef FUSEDRNN_X86_ISAS
  if constexpr (std::is_same_v<T, bfloat16>)
    if (isa() == Isa::kAvx512Bf16) return avx512_bf16::driver<Cell, T>();
  if (isa() >= Isa::kAvx512) return avx512::driver<Cell, T>();
  if (isa() == Isa::kAvx2) return avx2::driver<Cell, T>();
#elif defined(FUSEDRNN_ARM_ISAS)
  if constexpr (std::is_same_v<T, bfloat16>)
    if (isa() == Isa::kNeonBf16) return neon_bf16::driver<Cell, T>();
#endif
  return baseline::driver<Cell, T>();
}

const PackedKernels& packed_kernels([[maybe_unused]] int64_t rows) {
#ifdef FUSEDRNN_X86_ISAS
  if (isa() == Isa::kAvx512Bf16 && rows > 2) return avx512_bf16::packed_kernels();
  if (isa() >= Isa::kAvx512Vnni) return avx512_vnni::packed_kernels();
  if (isa() == Isa::kAvx512) return avx512::packed_kernels();
  if (isa() == Isa::kAvx2) return avx2::packed_kernels();
#endif
  return baseline::packed_kernels();
}

template <class T, class... Cells>
auto instantiate(CellList<Cells...>) {
  return std::array{&cpu_driver<Cells, T>...};
}
template auto instantiate<float>(BuiltInCells);
template auto instantiate<double>(BuiltInCells);
template auto instantiate<bfloat16>(BuiltInCells);
template auto instantiate<float16>(BuiltInCells);

}  // namespace fusedrnn
