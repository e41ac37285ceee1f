#include "drivers.cuh"

namespace fusedrnn {
template auto instantiate<float>(BuiltInCells);
}
