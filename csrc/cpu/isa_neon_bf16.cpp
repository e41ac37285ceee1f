// The CPU drivers of bfloat16 for aarch64 with products of pairs. As in isa_avx512.cpp, standard headers come first.
#include "isa.h"

#ifdef FUSEDRNN_ARM_ISAS
FUSEDRNN_BEGIN_TARGET("arch=armv8.2-a+bf16")
#define FUSEDRNN_ISA neon_bf16
#define FUSEDRNN_VECTOR_BYTES 16
#define FUSEDRNN_DOT_PRODUCTS

#include "dot_neon.h"
#include "drivers.h"
FUSEDRNN_END_TARGET
#endif
