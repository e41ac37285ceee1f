#include "kernels.h"

#define FUSEDRNN_ISA wide
#ifdef FUSEDRNN_X86_ISAS
FUSEDRNN_BEGIN_TARGET("arch=x86-64-v3")
#define FUSEDRNN_VECTOR_BYTES 32
#else
FUSEDRNN_BEGIN_TARGET("arch=armv8-a")
#define FUSEDRNN_VECTOR_BYTES 16
#endif
#include "instantiate.h"

namespace fusedrnn::wide {
INSTANTIATE(float)
INSTANTIATE_TEST_CELLS(float)
INSTANTIATE(bfloat16)
}  // namespace fusedrnn::wide
FUSEDRNN_END_TARGET
