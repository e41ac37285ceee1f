// The instruction sets the drivers are compiled for: one namespace each, chosen from at run time in scan.cpp.
#pragma once

#include <array>
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

#define FUSEDRNN_DECLARE(isa)    \
  namespace isa {                \
  template <class Cell, class T> \
  CpuDriver<T> driver();         \
  }
FUSEDRNN_DECLARE(avx512_bf16)
FUSEDRNN_DECLARE(avx512)
FUSEDRNN_DECLARE(avx2)
FUSEDRNN_DECLARE(baseline)
#undef FUSEDRNN_DECLARE

}  // namespace fusedrnn
