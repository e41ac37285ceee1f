// Chooses the instruction set, once: the best this processor has, or what FUSEDRNN_ISA asks for if it has that.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "isa.h"

namespace fusedrnn {
namespace {

enum class Isa { kBaseline, kAvx2, kAvx512 };
constexpr const char* kNames[] = {"DEFAULT", "AVX2", "AVX512"};

Isa best_isa() {
#ifdef FUSEDRNN_X86_ISAS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd"))
    return Isa::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
    return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

Isa choose_isa() {
  Isa best = best_isa();
  const char* wanted = std::getenv("FUSEDRNN_ISA");
  if (!wanted || !*wanted) return best;
  for (int i = 0; i <= static_cast<int>(best); ++i)
    if (!std::strcmp(wanted, kNames[i])) return static_cast<Isa>(i);
  throw std::invalid_argument(std::string("FUSEDRNN_ISA=") + wanted +
                              " is none of DEFAULT, AVX2, AVX512, or more than " + kNames[static_cast<int>(best)] +
                              ", this processor's best");
}

Isa isa() {
  static const Isa chosen = choose_isa();
  return chosen;
}

}  // namespace

const char* cpu_capability() { return kNames[static_cast<int>(isa())]; }

template <class T>
void scan_forward_cpu(CellKind cell, const ScanParams<T>& params) {
#ifdef FUSEDRNN_X86_ISAS
  if (isa() == Isa::kAvx512) return avx512::scan_forward(cell, params);
  if (isa() == Isa::kAvx2) return avx2::scan_forward(cell, params);
#endif
  baseline::scan_forward(cell, params);
}

template <class T>
void scan_backward_cpu(CellKind cell, const ScanParams<T>& params, const ScanGrads<T>& grads) {
#ifdef FUSEDRNN_X86_ISAS
  if (isa() == Isa::kAvx512) return avx512::scan_backward(cell, params, grads);
  if (isa() == Isa::kAvx2) return avx2::scan_backward(cell, params, grads);
#endif
  baseline::scan_backward(cell, params, grads);
}

#define FUSEDRNN_INSTANTIATE(T)                                      \
  template void scan_forward_cpu<T>(CellKind, const ScanParams<T>&); \
  template void scan_backward_cpu<T>(CellKind, const ScanParams<T>&, const ScanGrads<T>&);
FUSEDRNN_INSTANTIATE(float)
FUSEDRNN_INSTANTIATE(double)
FUSEDRNN_INSTANTIATE(bfloat16)
FUSEDRNN_INSTANTIATE(float16)
#undef FUSEDRNN_INSTANTIATE

}  // namespace fusedrnn
