// AVX-512's products of pairs of bfloat16, in vectors of 16 bytes that every processor has.
#include "kernels.h"

namespace {

typedef float Floats __attribute__((vector_size(16)));
typedef uint32_t Pairs __attribute__((vector_size(16)));
typedef uint16_t Rounded __attribute__((vector_size(8)));

[[maybe_unused]] Floats add_products(Floats sum, Pairs a, Pairs b) {
  sum += (Floats)(a << 16) * (Floats)(b << 16);
  return sum + (Floats)(a & 0xffff0000u) * (Floats)(b & 0xffff0000u);
}

// To nearest, ties to even; numbers below the least normal one become zero.
[[maybe_unused]] Rounded round_to_bfloat16(Floats x) {
  Pairs bits = (Pairs)x, magnitude = bits & 0x7fffffffu;
  Pairs rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  rounded = magnitude < 0x00800000u ? bits >> 31 << 15 : rounded;
  rounded = magnitude > 0x7f800000u ? bits >> 16 | 0x40u : rounded;
  return __builtin_convertvector(rounded, Rounded);
}

}  // namespace

#define __m512 Floats
#define __m512bh Pairs
#define __m256bh Rounded
#define _mm512_dpbf16_ps add_products
#define _mm512_cvtneps_pbh round_to_bfloat16
#define FUSEDRNN_ISA dot_products
#define FUSEDRNN_VECTOR_BYTES 16
#define FUSEDRNN_DOT_PRODUCTS
#include "instantiate.h"

namespace fusedrnn::dot_products {
INSTANTIATE(bfloat16)
}  // namespace fusedrnn::dot_products
