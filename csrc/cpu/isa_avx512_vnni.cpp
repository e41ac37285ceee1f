// Products with packed weights for AVX-512 with products of bytes. As in isa_avx512.cpp, standard headers come first.
#include "isa.h"

#ifdef FUSEDRNN_X86_ISAS
FUSEDRNN_BEGIN_TARGET("arch=x86-64-v4,avx512vnni")
#define FUSEDRNN_ISA avx512_vnni
#define FUSEDRNN_VECTOR_BYTES 64
#define FUSEDRNN_VNNI
#include "packed_kernels.h"
FUSEDRNN_END_TARGET
#endif
