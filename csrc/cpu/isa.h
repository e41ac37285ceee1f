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

#include "../packed.h"
#include "../scan.h"
#include "memory.h"
#include "parallel.h"

#ifdef __x86_64__
#define FUSEDRNN_X86_ISAS
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#if !defined(__clang__) || __clang_major__ >= 16  // clang's older header has bfloat16 only where all code may use it
#define FUSEDRNN_ARM_ISAS
#endif
#endif

// What stands between these is compiled for an instruction set: FUSEDRNN_BEGIN_TARGET("arch=x86-64-v3"). With GCC, all
// that follows is, as it compiles templates at the end of a file.
#define FUSEDRNN_PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define FUSEDRNN_BEGIN_TARGET(isa) \
  FUSEDRNN_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define FUSEDRNN_END_TARGET FUSEDRNN_PRAGMA(clang attribute pop)
#else
#define FUSEDRNN_BEGIN_TARGET(isa) FUSEDRNN_PRAGMA(GCC target(isa))
#define FUSEDRNN_END_TARGET
#endif

namespace fusedrnn {

#define FUSEDRNN_DECLARE(isa)            \
  namespace isa {                        \
  template <class Cell, class T>         \
  CpuDriver<T> driver();                 \
  const PackedKernels& packed_kernels(); \
  }
FUSEDRNN_DECLARE(avx512_bf16)
FUSEDRNN_DECLARE(avx512_vnni)
FUSEDRNN_DECLARE(avx512)
FUSEDRNN_DECLARE(avx2)
FUSEDRNN_DECLARE(neon_bf16)
FUSEDRNN_DECLARE(baseline)
#undef FUSEDRNN_DECLARE

}  // namespace fusedrnn
