// The CPU drivers for AVX-512. Standard headers come first: their inline functions are shared with files compiled for
// any processor, so they must not be compiled for this one.
#include "isa.h"

#ifdef FUSEDRNN_X86_ISAS
FUSEDRNN_BEGIN_TARGET("arch=x86-64-v4")
#define FUSEDRNN_ISA avx512
#define FUSEDRNN_VECTOR_BYTES 64
#include "drivers.h"
FUSEDRNN_END_TARGET
#endif
