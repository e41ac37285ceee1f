#include "kernels.h"

#define FUSEDRNN_ISA narrow_vectors
#define FUSEDRNN_VECTOR_BYTES 16
#include "cpu/backward.h"
#include "cpu/forward.h"

namespace fusedrnn::narrow_vectors {
INSTANTIATE(double)
INSTANTIATE(float16)
}  // namespace fusedrnn::narrow_vectors
