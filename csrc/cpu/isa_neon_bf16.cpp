// The CPU drivers of bfloat16 for aarch64 with products of pairs. As in isa_avx512.cpp, standard headers come first.
#include "isa.h"

#ifdef FUSEDRNN_ARM_ISAS
FUSEDRNN_BEGIN_TARGET("arch=armv8.2-a+bf16")
#define FUSEDRNN_ISA neon_bf16
#define FUSEDRNN_VECTOR_BYTES 16
#define FUSEDRNN_DOT_PRODUCTS

namespace {

typedef float Floats __attribute__((vector_size(16)));
typedef uint16_t Halves __attribute__((vector_size(8)));

FUSEDRNN_FN Floats add_products(Floats sum, Floats a, Floats b) {
  return (Floats)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)a, (bfloat16x8_t)b);
}
FUSEDRNN_FN Halves round_to_bfloat16(Floats x) { return (Halves)vcvt_bf16_f32((float32x4_t)x); }

}  // namespace

#include "drivers.h"
FUSEDRNN_END_TARGET
#endif
