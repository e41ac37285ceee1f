// Asks the device how many clusters of each size it runs at once, for the plan.
#include "device.cuh"
#include "plan.h"

namespace fusedrnn {
namespace {

__global__ void empty_kernel() {}

}  // namespace

int ask_for_clusters(Device* device) {
  device->clusters[0] = device->multiprocessors;
  for (int size = 1; size < kClusterSizes; ++size) {
    device->clusters[size] = 0;
    if (device->capability < 90) continue;
    device::Launch launch;
    launch.cluster = 1u << size;
    launch.grid = dim3(launch.cluster);
    launch.block = dim3(kThreads);
    launch.shared_bytes = static_cast<size_t>(device->shared_bytes);
    const device::Error error = device::resident_clusters(launch, &empty_kernel, &device->clusters[size]);
    if (error != device::kSuccess) return error;
  }
  return device::kSuccess;
}

}  // namespace fusedrnn
