// The CPU drivers for AVX2. Standard headers come first: their inline functions are shared with files compiled for any
// processor, so they must not be compiled for this one.
#include "isa.h"

#ifdef FUSEDRNN_X86_ISAS
FUSEDRNN_BEGIN_TARGET("arch=x86-64-v3")
#define FUSEDRNN_ISA avx2
#define FUSEDRNN_VECTOR_BYTES 32
#include "drivers.h"
FUSEDRNN_END_TARGET
#endif
