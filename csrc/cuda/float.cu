#include "drivers.cuh"

namespace fusedrnn {
FUSEDRNN_INSTANTIATE(float);
}
