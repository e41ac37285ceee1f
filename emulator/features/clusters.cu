// Blocks of a cluster: pushes into each other's shared memory, which an mbarrier counts.
#include "features.h"

using namespace fusedrnn;
using namespace fusedrnn::device;

namespace {

template <bool kReady>
__global__ void push_once(float* out) {  // before the peer is known to have started, or when it may have left
  float* s = Carver(shared_memory()).take<float>(32);
  uint64_t* barrier = reinterpret_cast<uint64_t*>(s + 16);
  if (kReady) cluster_arrive(), cluster_wait();
  st_async16(s + threadIdx.x % 4 * 4, barrier, (blockIdx.x + 1) % 2, {});
  out[blockIdx.x * 32 + threadIdx.x] = 0;
}
template <bool kReady>
bool push_to_no_one() {
  Floats out(64);
  launch({.grid = 2, .block = 32, .cluster = 2, .shared_bytes = 128}, &push_once<kReady>, out.data());
  return true;
}

enum class Push { kRight, kNoWait, kFewBytes, kNoFence, kOneBuffer, kTooFarAhead };

template <Push kPush>
constexpr unsigned kBlocks = kPush == Push::kTooFarAhead ? 4 : 2;  // of a cluster

template <Push kPush>
__global__ void push_around(float* out, int steps) {  // a ring: every step a block passes 32 values on, plus one
  Carver carver(shared_memory());
  float* s = carver.take<float>(64);
  uint64_t* barriers = carver.take<uint64_t>(2);
  if (threadIdx.x == 0) {
    mbarrier_init(&barriers[0], 1);
    mbarrier_init(&barriers[1], 1);
    if (kPush != Push::kNoFence) mbarrier_init_fence();
  }
  cluster_arrive();
  cluster_wait();
  const unsigned rank = blockIdx.x % kBlocks<kPush>, next = (rank + 1) % kBlocks<kPush>;
  float4 value = {float(rank), 0, 0, 0};
  for (int t = 0; t < steps; ++t) {
    int buffer = kPush == Push::kOneBuffer ? 0 : t % 2;
    if (threadIdx.x == 0) mbarrier_arrive_expect(&barriers[t % 2], kPush == Push::kFewBytes ? 112 : 128);
    if (threadIdx.x < 8) {
      uint4 bits;
      std::memcpy(&bits, &value, sizeof bits);
      st_async16(s + buffer * 32 + threadIdx.x * 4, &barriers[t % 2], next, bits);
    }
    if (kPush != Push::kNoWait) mbarrier_wait(&barriers[t % 2], t / 2 % 2);
    value = load_as<float4>(s + buffer * 32 + threadIdx.x % 8 * 4);
    value.x += 1;
    __syncthreads();
  }
  out[blockIdx.x * 32 + threadIdx.x] = threadIdx.x % 4 ? 0 : value.x;
  cluster_arrive();
  cluster_wait();
}
// In a ring of four a block may push for the step after the next while the one it pushes to still waits for this step:
// the two share a barrier, and its phase never ends.
template <Push kPush>
bool pushes() {
  constexpr unsigned kSize = kBlocks<kPush>;
  Floats out(8 * 32);
  launch({.grid = 8, .block = 32, .cluster = kSize, .shared_bytes = 272}, &push_around<kPush>, out.data(), 6);
  return equal(out, [](int i) { return i % 4 ? 0 : (i / 32 % kSize + 8 - 6) % kSize + 6; });
}

__global__ void nothing() {}

bool refuse_cluster_on_sm_80() {
  emulator::config.device.capability = 80;
  return launch({.grid = 2, .block = 32, .cluster = 2}, &nothing) == kSuccess;
}

}  // namespace

Features cluster_features() {
  return {
      {"pushes_before_start", push_to_no_one<false>},
      {"pushes_after_exit", push_to_no_one<true>},
      {"pushes", pushes<Push::kRight>},
      {"pushes_without_wait", pushes<Push::kNoWait>},
      {"pushes_of_more_than_announced", pushes<Push::kFewBytes>},
      {"pushes_without_fence", pushes<Push::kNoFence>},
      {"pushes_into_one_buffer", pushes<Push::kOneBuffer>},
      {"pushes_too_far_ahead", pushes<Push::kTooFarAhead>},
      {"refuse_cluster_on_sm_80", refuse_cluster_on_sm_80},
  };
}
