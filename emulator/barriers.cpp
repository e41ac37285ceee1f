#include <cstring>

#include "sanitizers.h"
#include "scheduler.h"

namespace emulator {
namespace {

void end_phase(Barrier& barrier) {
  ++counts.barriers;
  for (Thread* thread : barrier.waiting) make_ready(thread);
  barrier.waiting.clear();
  barrier.arrived = 0;
  ++barrier.phase;
}

// Arrives, and waits for the others if asked to.
void join(Barrier& barrier, int threads, bool wait_for_others, const char* what, Site site) {
  const void* token = barrier.token();
  release(token);
  if (barrier.arrived == 0) {
    barrier.site = site;
    barrier.expected = threads;
  }
  if (++barrier.arrived >= threads) {
    end_phase(barrier);
    if (wait_for_others && hostile() && random_below(2)) yield();
  } else if (wait_for_others) {
    barrier.waiting.push_back(machine.running);
    wait(what, site);
  }
  if (wait_for_others) acquire(token);
}

bool same(Site a, Site b) { return a.line == b.line && !std::strcmp(a.file, b.file); }

void all_are_here(int live, int threads, const char* what, Site site) {
  if (live < threads) fail(std::to_string(threads - live) + " threads have left before " + what, site);
}

int live_threads(const Cluster& cluster) {
  int live = 0;
  for (const Block* block : cluster.blocks) live += block->live;
  return live;
}

}  // namespace

void block_barrier(Site site) {
  Block& block = *machine.running->block;
  Barrier& barrier = block.barrier;
  if (barrier.arrived && !same(barrier.site, site))
    fail("divergent __syncthreads: others of the block wait at " + place(barrier.site) + ", this one came", site);
  all_are_here(block.live, block.threads, "__syncthreads", site);
  join(barrier, block.threads, true, "in __syncthreads", site);
}

void grid_barrier(Site site) {
  size_t blocks = gridDim.count();
  if (machine.blocks.size() < blocks) fail("grid_sync without a cooperative launch", site);
  int threads = int(blocks * blockDim.count());
  all_are_here(machine.live, threads, "grid_sync", site);
  join(machine.grid, threads, true, "in grid_sync", site);
}

void cluster_arrive(Site site) {
  Thread* self = machine.running;
  if (self->in_cluster_barrier) fail("cluster_arrive twice without cluster_wait", site);
  if (self->unfenced) fail("mbarrier_init without mbarrier_init_fence before the cluster's barrier", site);
  Cluster& cluster = *self->block->cluster;
  int threads = self->block->threads * int(cluster.blocks.size());
  all_are_here(live_threads(cluster), threads, "cluster_arrive", site);
  self->in_cluster_barrier = true;
  self->cluster_phase = cluster.barrier.phase;
  join(cluster.barrier, threads, false, nullptr, site);
}

void cluster_wait(Site site) {
  Thread* self = machine.running;
  if (!self->in_cluster_barrier) fail("cluster_wait without cluster_arrive", site);
  Barrier& barrier = self->block->cluster->barrier;
  if (barrier.phase == self->cluster_phase) {
    barrier.waiting.push_back(self);
    wait("in cluster_wait", site);
  } else {
    maybe_yield();
  }
  self->in_cluster_barrier = false;
  acquire(&barrier.tokens[self->cluster_phase & 1]);
}

void leave_kernel() {
  Thread* self = machine.running;
  Block& block = *self->block;
  if (!self->copies.empty()) fail("a thread ends with asynchronous copies on their way", self->site);
  if (self->in_cluster_barrier) fail("a thread ends between cluster_arrive and cluster_wait", self->site);
  if (block.barrier.arrived) fail("a thread ends while others of its block wait", block.barrier.site);
  if (--block.live == 0) {  // nobody may touch the shared memory of a block that has left
    unpoison(block.shared, block.shared_bytes);
    raw_fill(block.shared, 0xff, block.shared_bytes);
    poison(block.shared, block.shared_bytes);
  }
  retire();
}

// ---- mbarriers: their 64 bits are opaque to kernels

namespace {

struct Phase {
  uint64_t parity : 1, pending : 20, count : 20;
  int64_t bytes : 23;  // announced, not yet come
};
static_assert(sizeof(Phase) == sizeof(uint64_t));

Phase read(const uint64_t* barrier) {
  Phase phase;
  raw_copy(reinterpret_cast<unsigned char*>(&phase), reinterpret_cast<const unsigned char*>(barrier), sizeof phase);
  return phase;
}

void write(uint64_t* barrier, Phase phase) {
  if (phase.pending == 0 && phase.bytes == 0) {
    phase.parity ^= 1;
    phase.pending = phase.count;
    ++machine.progress;
  }
  raw_copy(reinterpret_cast<unsigned char*>(barrier), reinterpret_cast<const unsigned char*>(&phase), sizeof phase);
}

constexpr unsigned kMostArrivals = 1024;

Phase initialised(const uint64_t* barrier, Site site) {
  Phase phase = read(barrier);
  if (phase.count == 0 || phase.count > kMostArrivals) fail("the mbarrier is not initialised", site);
  return phase;
}

}  // namespace

void mbarrier_init(uint64_t* barrier, unsigned count, Site site) {
  if (reinterpret_cast<uintptr_t>(barrier) % sizeof *barrier) fail("the mbarrier is misaligned", site);
  if (count == 0 || count > kMostArrivals)
    fail("an mbarrier cannot wait for " + std::to_string(count) + " arrivals", site);
  Phase phase{};
  phase.pending = phase.count = count;
  write(barrier, phase);
  machine.running->unfenced = true;
}

void mbarrier_init_fence() { machine.running->unfenced = false; }

void mbarrier_arrive_expect(uint64_t* barrier, unsigned bytes, Site site) {
  Phase phase = initialised(barrier, site);
  if (phase.pending == 0) fail("the mbarrier has more arrivals than it waits for", site);
  release(barrier);
  phase.bytes += bytes;
  --phase.pending;
  write(barrier, phase);
  maybe_yield();
}

void mbarrier_complete(uint64_t* barrier, int bytes) {
  Phase phase = read(barrier);
  phase.bytes -= bytes;
  write(barrier, phase);
}

void mbarrier_wait(uint64_t* barrier, unsigned parity, Site site) {
  do {
    before_load(barrier, site);
  } while (initialised(barrier, site).parity == (parity & 1));
  acquire(barrier);
}

}  // namespace emulator
