// Blocks of a grid: flags, grid barrier, cooperative launches, refused launches, memory out of bounds.
#include "features.h"

using namespace fusedrnn;
using namespace fusedrnn::device;

namespace {

// ---- between blocks

template <bool kWait>
__global__ void sum_blocks(uint32_t* counter, float* data, float* out) {
  if (threadIdx.x == 0) {
    data[blockIdx.x] = float(blockIdx.x + 1);
    add_release(counter, 1);
    if (kWait) wait_for(counter, gridDim.x);
    float sum = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) sum += data[b];
    out[blockIdx.x] = sum;
  }
  __syncthreads();
}
template <bool kWait, bool kCooperative>
bool flags() {
  uint32_t counter = 0;
  Floats data(16), out(16);
  launch({.grid = 16, .block = 64, .cooperative = kCooperative}, &sum_blocks<kWait>, &counter, data.data(), out.data());
  return equal(out, [](int) { return 136; });
}

__global__ void wait_forever(uint32_t* flag, uint32_t* other) {  // in turns on two flags
  while (load_acquire(flag) == 0 && load_relaxed(other) == 0) {
  }
}
bool deadlock() {
  uint32_t flags[2] = {};
  launch({.grid = 2, .block = 32}, &wait_forever, &flags[0], &flags[1]);
  return true;
}

__global__ void shift(uint32_t* a, uint32_t* b, int steps) {
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x, count = gridDim.x * blockDim.x;
  for (int s = 0; s < steps; ++s) {
    b[i] = a[(i + 37) % count] + 1;
    grid_sync();
    std::swap(a, b);
  }
}
template <bool kCooperative>
bool grid() {
  std::vector<uint32_t> a(320), b(320);
  for (uint32_t i = 0; i < 320; ++i) a[i] = i;
  launch({.grid = 5, .block = 64, .cooperative = kCooperative}, &shift, a.data(), b.data(), 6);
  for (uint32_t i = 0; i < 320; ++i)
    if (a[i] != (i + 37 * 6) % 320 + 6) return false;
  return true;
}

__global__ void spin(volatile uint32_t* flag) {
  while (threadIdx.x == 0 && *flag == 0) {
  }
  *flag = 1;
}
bool plain_spin() {
  emulator::config.watchdog_seconds = 0.5;
  uint32_t flag = 0;
  launch({.grid = 1, .block = 32}, &spin, &flag);
  return true;
}

// ---- launches that are refused, and memory out of bounds

__global__ void nothing() {}

bool refuse_shared_memory() { return launch({.grid = 1, .block = 32, .shared_bytes = 240000}, &nothing) == kSuccess; }
bool refuse_cooperative() {  // one fits on a multiprocessor, for its shared memory
  return launch({.grid = 133, .block = 32, .shared_bytes = 120000, .cooperative = true}, &nothing) == kSuccess;
}

__global__ void carve_too_much() { Carver(shared_memory()).take<float>(33)[threadIdx.x] = 0; }
bool carved_too_much() {
  launch({.grid = 1, .block = 32, .shared_bytes = 128}, &carve_too_much);
  return true;
}

template <int kAbove>
__global__ void overrun(float* out) {
  Carver carver(shared_memory());
  float *a = carver.take<float>(32), *b = carver.take<float>(32);
  a[threadIdx.x] = b[threadIdx.x] = 0;
  __syncwarp();
  out[threadIdx.x] = a[threadIdx.x + kAbove];
}
template <int kAbove>
bool overruns() {
  Floats out(32);
  launch({.grid = 1, .block = 32, .shared_bytes = 256}, &overrun<kAbove>, out.data());
  return equal(out, [](int) { return 0; });
}

}  // namespace

Features grid_features() {
  return {
      {"flags", flags<true, true>},
      {"flags_without_wait", flags<false, true>},
      {"flags_without_cooperation", flags<true, false>},
      {"deadlock", deadlock},
      {"grid_barrier", grid<true>},
      {"grid_barrier_without_cooperation", grid<false>},
      {"plain_spin", plain_spin},
      {"refuse_shared_memory", refuse_shared_memory},
      {"refuse_cooperative", refuse_cooperative},
      {"carved_too_much", carved_too_much},
      {"within_bounds", overruns<0>},
      {"overrun", overruns<1>},
  };
}
