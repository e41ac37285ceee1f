#include "kernels.h"

#define FUSEDRNN_ISA narrow_vectors
#define FUSEDRNN_VECTOR_BYTES 16
#include "instantiate.h"

namespace fusedrnn::narrow_vectors {
INSTANTIATE(double)
INSTANTIATE_TEST_CELLS(double)
INSTANTIATE(float16)
}  // namespace fusedrnn::narrow_vectors
