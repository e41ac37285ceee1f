// AVX-512's products of pairs of bfloat16, in vectors of 16 bytes that every processor has.
#include "kernels.h"

namespace {

typedef float Floats __attribute__((vector_size(16)));
typedef uint32_t Pairs __attribute__((vector_size(16)));
typedef uint16_t Rounded __attribute__((vector_size(8)));

Floats add_products(Floats sum, Floats a, Floats b) {
  sum += (Floats)((Pairs)a << 16) * (Floats)((Pairs)b << 16);
  return sum + (Floats)((Pairs)a & 0xffff0000u) * (Floats)((Pairs)b & 0xffff0000u);
}

// To nearest, ties to even; numbers below the least normal one become zero.
Rounded round_to_bfloat16(Floats x) {
  Pairs bits = (Pairs)x, magnitude = bits & 0x7fffffffu;
  Pairs rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  rounded = magnitude < 0x00800000u ? bits >> 31 << 15 : rounded;
  rounded = magnitude > 0x7f800000u ? bits >> 16 | 0x40u : rounded;
  return __builtin_convertvector(rounded, Rounded);
}

}  // namespace

#define FUSEDRNN_ISA dot_products
#define FUSEDRNN_VECTOR_BYTES 16
#define FUSEDRNN_DOT_PRODUCTS
#include "instantiate.h"

namespace fusedrnn::dot_products {
INSTANTIATE(bfloat16)
}  // namespace fusedrnn::dot_products
