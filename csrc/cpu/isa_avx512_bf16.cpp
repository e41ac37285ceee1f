// The CPU drivers of bfloat16 for AVX-512 with products of pairs. As in isa_avx512.cpp, standard headers come first.
#include "isa.h"

#ifdef FUSEDRNN_X86_ISAS
FUSEDRNN_BEGIN_TARGET("arch=x86-64-v4,avx512bf16,avx512vnni")
#define FUSEDRNN_ISA avx512_bf16
#define FUSEDRNN_VECTOR_BYTES 64
#define FUSEDRNN_DOT_PRODUCTS
#define FUSEDRNN_VNNI

#include "dot_avx512.h"
#include "drivers.h"
FUSEDRNN_END_TARGET
#endif
