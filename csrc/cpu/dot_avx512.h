// Products of pairs of bfloat16 on AVX-512, for instructions.h.
#pragma once

namespace {

typedef float Floats __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

FUSEDRNN_FN Floats add_products(Floats sum, Floats a, Floats b) {
  return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
// Numbers below the least normal one become zero.
FUSEDRNN_FN Halves round_to_bfloat16(Floats x) { return (Halves)_mm512_cvtneps_pbh((__m512)x); }

}  // namespace
