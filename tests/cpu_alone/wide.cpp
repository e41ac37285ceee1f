#include "kernels.h"

#ifdef FUSEDRNN_X86_ISAS
#pragma GCC target("arch=x86-64-v3")
#endif
#define FUSEDRNN_ISA wide
#define FUSEDRNN_VECTOR_BYTES 32
#include "cpu/backward.h"
#include "cpu/forward.h"

namespace fusedrnn::wide {
INSTANTIATE(float)
INSTANTIATE(bfloat16)
}  // namespace fusedrnn::wide
