#include "drivers.cuh"

namespace fusedrnn {
template auto instantiate<double>(BuiltInCells);
}
