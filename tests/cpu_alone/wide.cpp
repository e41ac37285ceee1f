#include "kernels.h"

#ifdef FUSEDRNN_X86_ISAS
#pragma GCC target("arch=x86-64-v3")
#endif
#define FUSEDRNN_ISA wide
#define FUSEDRNN_VECTOR_BYTES 32
#include "instantiate.h"

namespace fusedrnn::wide {
INSTANTIATE(float)
INSTANTIATE_TEST_CELLS(float)
INSTANTIATE(bfloat16)
}  // namespace fusedrnn::wide
