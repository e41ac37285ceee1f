// The CPU drivers for any processor: 16-byte vectors, which the compiler maps to SSE2, NEON or plain code.
#include "isa.h"

#define FUSEDRNN_ISA baseline
#define FUSEDRNN_VECTOR_BYTES 16
#include "drivers.h"
