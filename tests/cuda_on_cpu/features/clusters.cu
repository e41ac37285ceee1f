// Blocks of a cluster: distributed shared memory, pushes that an mbarrier counts.
#include "features.h"

using namespace fusedrnn;
using namespace fusedrnn::device;

namespace {

enum class Peers { kRight, kNotReady, kGone };

template <Peers kPeers>
__global__ void read_peer(float* out) {
  float* s = Carver(shared_memory()).take<float>(32);
  s[threadIdx.x] = float(cluster_rank());
  if (kPeers != Peers::kNotReady) cluster_arrive(), cluster_wait();
  out[blockIdx.x * 32 + threadIdx.x] = cluster_map(s, cluster_rank() ^ 1)[threadIdx.x];
  if (kPeers != Peers::kGone) cluster_arrive(), cluster_wait();
}
template <Peers kPeers>
bool distributed_memory() {
  Floats out(128);
  launch({.grid = 4, .block = 32, .cluster = 2, .shared_bytes = 128}, &read_peer<kPeers>, out.data());
  return equal(out, [](int i) { return i / 32 % 2 ? 0 : 1; });
}

enum class Push { kRight, kNoWait, kFewBytes, kNoFence, kOneBuffer, kTooFarAhead };

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
  unsigned next = (cluster_rank() + 1) % cluster_size();
  float4 value = {float(cluster_rank()), 0, 0, 0};
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
  constexpr unsigned kBlocks = kPush == Push::kTooFarAhead ? 4 : 2;
  Floats out(8 * 32);
  launch({.grid = 8, .block = 32, .cluster = kBlocks, .shared_bytes = 272}, &push_around<kPush>, out.data(), 6);
  return equal(out, [](int i) { return i % 4 ? 0 : (i / 32 % kBlocks + 8 - 6) % kBlocks + 6; });
}

__global__ void nothing() {}

bool refuse_cluster_on_sm_80() {
  emulator::config.device.capability = 80;
  return launch({.grid = 2, .block = 32, .cluster = 2}, &nothing) == kSuccess;
}

}  // namespace

Features cluster_features() {
  return {
      {"distributed_memory", distributed_memory<Peers::kRight>},
      {"distributed_memory_before_start", distributed_memory<Peers::kNotReady>},
      {"distributed_memory_after_exit", distributed_memory<Peers::kGone>},
      {"pushes", pushes<Push::kRight>},
      {"pushes_without_wait", pushes<Push::kNoWait>},
      {"pushes_of_more_than_announced", pushes<Push::kFewBytes>},
      {"pushes_without_fence", pushes<Push::kNoFence>},
      {"pushes_into_one_buffer", pushes<Push::kOneBuffer>},
      {"pushes_too_far_ahead", pushes<Push::kTooFarAhead>},
      {"refuse_cluster_on_sm_80", refuse_cluster_on_sm_80},
  };
}
