// The state of the emulated device during a launch: threads in warps in blocks in clusters.
//
// Nothing here may allocate while a kernel runs, beyond what was reserved before: memory that one fiber allocates would
// look racy to the others. A kernel that fails is left in the middle, so kernels must have nothing to destroy.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "emulator.h"
#include "fiber.h"

namespace emulator {

struct Thread;

struct Barrier {  // serves any number of phases, one at a time
  int arrived = 0, expected = 0;
  unsigned phase = 0;
  Site site;  // of the first that came
  std::vector<Thread*> waiting;
  char tokens[2];  // for ThreadSanitizer, one for odd and one for even phases

  const void* token() const { return &tokens[phase & 1]; }
};

struct WarpOperation {  // the one that the lanes of a warp are gathering for
  uint32_t arrived = 0;
  const char* kind;
  Site site;
  const void* in[32];
  void* out[32];
  Thread* lanes[32];
  unsigned phase = 0;
  char tokens[2];
};

struct Cluster;
struct Block {
  uint3 index;
  Cluster* cluster;
  unsigned rank;  // in the cluster
  int threads, live;
  bool started = false;
  uint64_t priority;
  std::unique_ptr<unsigned char[]> memory;
  unsigned char* shared;  // dynamic shared memory, in `memory`
  size_t shared_bytes;    // as launched, and with the red zones
  Barrier barrier;        // __syncthreads
  std::vector<WarpOperation> warps;
};
struct Cluster {
  std::vector<Block*> blocks;
  Barrier barrier;
};

struct Copy {  // an asynchronous copy on its way
  unsigned char* to;
  const unsigned char* from;
  int bytes;
  bool valid;
};

struct Thread {
  Fiber fiber;
  uint3 index;
  Block* block;
  unsigned warp, lane;
  uint64_t priority;
  bool done = true;
  const char* waits;  // for what; null: it can run
  Site site;          // where it waits or waited last
  const void* polled;
  uint64_t polled_at;   // the progress of the machine at its last poll
  unsigned idle_polls;  // since then
  bool in_cluster_barrier;
  bool unfenced;  // it initialised mbarriers that other blocks may not see yet
  unsigned cluster_phase;
  std::vector<Copy> copies;
  std::vector<size_t> groups;  // ends of the committed groups in `copies`
};

struct Message {  // an asynchronous store on its way to another block
  unsigned char* to;
  uint64_t* barrier;
  unsigned char bytes[16];
};

struct Machine {
  Thread* running = nullptr;                     // null: the host
  std::vector<std::unique_ptr<Thread>> threads;  // kept for the next launch, with their stacks
  std::vector<std::unique_ptr<Block>> blocks;    // those that run at the same time
  std::vector<std::unique_ptr<Cluster>> clusters;
  std::vector<Message> messages;
  Barrier grid;
  int live = 0;           // threads
  uint64_t progress = 0;  // counts what a waiting thread may wait for
  bool failed = false;
  std::string report;
};
extern Machine machine;

void enter_kernel();  // a thread's first act ...
void leave_kernel();  // ... and its last
void mbarrier_complete(uint64_t* barrier, int bytes);

}  // namespace emulator
