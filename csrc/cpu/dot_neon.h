// Products of pairs of bfloat16 on aarch64, for instructions.h.
#pragma once

namespace {

typedef float Floats __attribute__((vector_size(16)));
typedef uint16_t Halves __attribute__((vector_size(8)));

FUSEDRNN_FN Floats add_products(Floats sum, Floats a, Floats b) {
  return (Floats)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)a, (bfloat16x8_t)b);
}
FUSEDRNN_FN Halves round_to_bfloat16(Floats x) { return (Halves)vcvt_bf16_f32((float32x4_t)x); }

}  // namespace
