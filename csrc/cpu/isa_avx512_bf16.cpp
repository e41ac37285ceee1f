// The CPU drivers of bfloat16 for AVX-512 with products of pairs. As in isa_avx512.cpp, standard headers come first.
#include "isa.h"

#ifdef FUSEDRNN_X86_ISAS
FUSEDRNN_BEGIN_TARGET("arch=x86-64-v4,avx512bf16")
#define FUSEDRNN_ISA avx512_bf16
#define FUSEDRNN_VECTOR_BYTES 64
#define FUSEDRNN_DOT_PRODUCTS

namespace {

typedef float Floats __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

FUSEDRNN_FN Floats add_products(Floats sum, Floats a, Floats b) {
  return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
// Numbers below the least normal one become zero.
FUSEDRNN_FN Halves round_to_bfloat16(Floats x) { return (Halves)_mm512_cvtneps_pbh((__m512)x); }

}  // namespace

#include "drivers.h"
FUSEDRNN_END_TARGET
#endif
