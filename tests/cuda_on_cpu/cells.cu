// The kernels of the cells that only tests have.
#include "../test_cells.h"
#include "cuda/drivers.cuh"

namespace fusedrnn {
template CudaDriver<double> cuda_driver<ThreeStatesCell, double>();
template CudaDriver<double> cuda_driver<FourStatesCell, double>();
}  // namespace fusedrnn
