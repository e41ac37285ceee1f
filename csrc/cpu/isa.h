// The instruction sets the drivers are compiled for: one namespace each, chosen from at run time in scan.cpp.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#include "../scan.h"
#include "memory.h"
#include "parallel.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FUSEDRNN_X86_ISAS
#include <immintrin.h>
#endif

namespace fusedrnn {

#define FUSEDRNN_DECLARE(isa)                                                                \
  namespace isa {                                                                            \
  template <class T>                                                                         \
  void scan_forward(CellKind cell, const ScanParams<T>& params);                             \
  template <class T>                                                                         \
  void scan_backward(CellKind cell, const ScanParams<T>& params, const ScanGrads<T>& grads); \
  }
FUSEDRNN_DECLARE(avx512_bf16)
FUSEDRNN_DECLARE(avx512)
FUSEDRNN_DECLARE(avx2)
FUSEDRNN_DECLARE(baseline)
#undef FUSEDRNN_DECLARE

}  // namespace fusedrnn
