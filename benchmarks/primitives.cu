// What it costs to synchronise: microseconds a step of each way in which blocks can wait for each other.
#include <cstdio>

#include "device.cuh"

namespace {

using namespace fusedrnn;

constexpr int kThreads = 256, kSteps = 2000;

__global__ void whole_grid() {
  for (int i = 0; i < kSteps; ++i) device::grid_sync();
}

__global__ void counter_in_l2(uint32_t* counter) {
  for (int i = 0; i < kSteps; ++i) {
    __syncthreads();
    if (threadIdx.x == 0) {
      const uint32_t before = device::fetch_add_acq_rel(counter, 1);
      device::wait_for(counter, (before / gridDim.x + 1) * gridDim.x);
    }
    __syncthreads();
  }
}

__global__ void whole_cluster() {
  for (int i = 0; i < kSteps; ++i) {
    device::cluster_arrive();
    device::cluster_wait();
  }
}

// Each block pushes 16 bytes a thread of a warp to every block, and waits for all that come: a step of tier cluster.
__global__ void push_through_cluster() {
  auto* barriers = reinterpret_cast<uint64_t*>(device::shared_memory());
  unsigned char* box = device::shared_memory() + 128;
  const unsigned blocks = gridDim.x, bytes = 32 * 16;
  if (threadIdx.x == 0) {
    device::mbarrier_init(&barriers[0], 1);
    device::mbarrier_init(&barriers[1], 1);
    device::mbarrier_init_fence();
  }
  device::cluster_arrive();
  device::cluster_wait();
  for (int i = 0; i < kSteps; ++i) {
    uint64_t* barrier = &barriers[i & 1];
    if (threadIdx.x == 0) device::mbarrier_arrive_expect(barrier, blocks * bytes);
    for (unsigned p = threadIdx.x; p < blocks * 32; p += blockDim.x) {
      unsigned char* to = box + ((i & 1) * blocks + blockIdx.x) * bytes + p % 32 * 16;
      device::st_async16(to, barrier, p / 32, uint4{p, p, p, p});
    }
    device::mbarrier_wait(barrier, i >> 1 & 1);
    __syncthreads();
  }
  device::cluster_arrive();
  device::cluster_wait();
}

template <class... P, class... A>
void time(const char* name, device::Launch launch, void (*kernel)(P...), A... args) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin), cudaEventCreate(&end);
  float milliseconds = 0;
  for (int round = 0; round < 3; ++round) {  // the last counts
    cudaEventRecord(begin);
    device::Error error = device::launch(launch, kernel, args...);
    cudaEventRecord(end);
    if (error == device::kSuccess) error = cudaEventSynchronize(end);
    if (error != device::kSuccess) {
      std::printf("%-32s %3u blocks: %s\n", name, launch.grid.x, device::error_name(error));
      return;
    }
    cudaEventElapsedTime(&milliseconds, begin, end);
  }
  std::printf("%-32s %3u blocks: %.3f us a step\n", name, launch.grid.x, 1e3 * milliseconds / kSteps);
}

}  // namespace

int main() {
  device::Properties properties;
  if (device::properties(&properties) != device::kSuccess) return std::puts("no GPU"), 1;
  uint32_t* counter;
  cudaMalloc(&counter, sizeof *counter);
  device::Launch all;
  all.block = dim3(kThreads);
  all.cooperative = true;
  for (unsigned blocks : {8u, 32u, 64u, unsigned(properties.multiprocessors)}) {
    all.grid = dim3(blocks);
    time("barrier of the grid", all, &whole_grid);
    cudaMemset(counter, 0, sizeof *counter);
    time("counter in L2", all, &counter_in_l2, counter);
  }
  if (properties.capability < 90) return std::puts("no clusters"), 0;
  for (unsigned blocks : {2u, 4u, 8u, 16u}) {
    device::Launch launch;
    launch.grid = dim3(blocks), launch.block = dim3(kThreads);
    launch.cluster = blocks;
    launch.shared_bytes = 128 + 2 * 16 * 512;
    time("barrier of a cluster", launch, &whole_cluster);
    time("push through a cluster", launch, &push_through_cluster);
  }
}
