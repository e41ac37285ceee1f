#include "drivers.cuh"

namespace fusedrnn {
template auto instantiate<bfloat16>(BuiltInCells);
}
