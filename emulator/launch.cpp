// A launch: blocks that run at the same time are set up, run and taken down together, wave after wave.
#include <signal.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "sanitizers.h"
#include "scheduler.h"

namespace emulator {
namespace {

constexpr size_t kSharedAlignment = 128;
#ifdef EMULATOR_ASAN
constexpr size_t kRedZones = 4096;  // see red_zone()
#else
constexpr size_t kRedZones = 0;
#endif

void (*kernel_body)(void*);
void* kernel_args;

void run_thread() {
  enter_kernel();
  Block& block = *machine.running->block;
  if (!block.started) {  // only now: what others stored before is lost
    block.started = true;
    raw_fill(block.shared, 0xff, block.shared_bytes);  // NaN in every format
  }
  kernel_body(kernel_args);
  leave_kernel();
}

std::unique_ptr<Block> make_block(const Launch& launch, size_t number) {
  auto block = std::make_unique<Block>();
  size_t threads = launch.block.count();
  block->index = {unsigned(number % launch.grid.x), unsigned(number / launch.grid.x % launch.grid.y),
                  unsigned(number / launch.grid.x / launch.grid.y)};
  block->rank = number % launch.cluster;
  block->threads = block->live = int(threads);
  block->priority = random_bits();
  // Its end is that of an allocation, so AddressSanitizer sees an overrun.
  block->shared_bytes = launch.shared_bytes + kRedZones;
  block->memory.reset(new unsigned char[block->shared_bytes + kSharedAlignment]);
  auto begin = reinterpret_cast<uintptr_t>(block->memory.get());
  block->shared = block->memory.get() + (kSharedAlignment - begin % kSharedAlignment) % kSharedAlignment;
  poison(block->shared + block->shared_bytes, block->memory.get() + kSharedAlignment - block->shared);
  block->warps.resize(threads / 32);
  block->barrier.waiting.reserve(threads);
  return block;
}

void make_thread(Thread& thread, const Launch& launch, Block& block, size_t number, size_t stack, uint64_t priority) {
  constexpr size_t kCopies = 1024, kGroups = 16;
  start(thread.fiber, run_thread, stack);
  thread.index = {unsigned(number % launch.block.x), unsigned(number / launch.block.x % launch.block.y),
                  unsigned(number / launch.block.x / launch.block.y)};
  thread.block = &block;
  thread.warp = number / 32;
  thread.lane = number % 32;
  thread.priority = priority;
  thread.done = false;
  thread.waits = nullptr;
  thread.site = {};
  thread.polled = nullptr;
  thread.polled_at = machine.progress;
  thread.idle_polls = 0;
  thread.in_cluster_barrier = thread.unfenced = false;
  thread.copies.clear();
  thread.copies.reserve(kCopies);
  thread.groups.clear();
  thread.groups.reserve(kGroups);
  name(thread.fiber, thread.index, block.index);
}

void set_up(const Launch& launch, size_t first, size_t count) {
  constexpr size_t kMessages = 65536;
  size_t threads = launch.block.count();
  machine.clusters.clear();
  machine.blocks.clear();
  machine.messages.clear();
  machine.messages.reserve(kMessages);
  machine.grid = Barrier{};
  machine.grid.waiting.reserve(threads * count);
  machine.live = int(threads * count);
  while (machine.threads.size() < threads * count) machine.threads.push_back(std::make_unique<Thread>());
  reset_scheduler(threads * count);
  for (size_t b = 0; b < count; ++b) {
    machine.blocks.push_back(make_block(launch, first + b));
    Block& block = *machine.blocks.back();
    if (block.rank == 0) machine.clusters.push_back(std::make_unique<Cluster>());
    block.cluster = machine.clusters.back().get();
    block.cluster->blocks.push_back(&block);
    block.cluster->barrier.waiting.reserve(threads * launch.cluster);
    uint64_t warp_priority = 0;  // the lanes of a warp share the upper half of what is theirs: whole warps run ahead
    for (size_t t = 0; t < threads; ++t) {
      if (t % 32 == 0) warp_priority = random_bits() & 0xfff000;
      size_t stack = b * threads + t;
      make_thread(*machine.threads[stack], launch, block, t, stack, warp_priority | (random_bits() & 0xfff));
    }
  }
  for (size_t i = 0; i < threads * count; ++i) make_ready(machine.threads[i].get());
}

void take_down() {
  for (const auto& block : machine.blocks) unpoison(block->memory.get(), block->shared_bytes + kSharedAlignment);
  for (const auto& thread : machine.threads) {
    if (machine.failed) forget(thread->fiber);
    thread->done = true;
  }
}

// SIGALRM comes every watchdog_seconds; if no thread has given way in between, one spins.
void on_alarm(int) {
  static uint64_t seen = 0;
  if (machine.running && counts.switches == seen) {
    char text[160];
    int length = std::snprintf(
        text, sizeof text, "emulator: thread %u of block (%u,%u) gives no way to others: it spins on plain memory\n",
        threadIdx.x, blockIdx.x, blockIdx.y);
    if (write(STDERR_FILENO, text, length) < 0) std::abort();
    std::abort();
  }
  seen = counts.switches;
}

void set_watchdog(double seconds) {
  itimerval timer{};
  timer.it_value.tv_sec = timer.it_interval.tv_sec = time_t(seconds);
  timer.it_value.tv_usec = timer.it_interval.tv_usec = suseconds_t((seconds - double(time_t(seconds))) * 1e6);
  signal(SIGALRM, seconds > 0 ? on_alarm : SIG_DFL);
  setitimer(ITIMER_REAL, &timer, nullptr);
}

Error refuse(Error error, const std::string& why) {
  if (machine.report.empty()) machine.report = "launch refused: " + why;
  return error;
}

Error check(const Launch& launch) {
  size_t threads = launch.block.count(), blocks = launch.grid.count();
  if (blocks == 0) return refuse(kInvalidConfiguration, "an empty grid");
  if (threads == 0 || threads > 1024 || threads % 32)
    return refuse(kInvalidConfiguration, "blocks of " + std::to_string(threads) + " threads");
  if (launch.grid.y > 65535 || launch.grid.z > 65535)
    return refuse(kInvalidConfiguration, "a grid above 65535 in y or z");
  if (launch.shared_bytes > size_t(config.device.shared_bytes))
    return refuse(kInvalidValue, std::to_string(launch.shared_bytes) + " bytes of shared memory, the device has " +
                                     std::to_string(config.device.shared_bytes));
  if (launch.cluster == 0 || launch.cluster > 16 || launch.grid.x % launch.cluster ||
      (launch.cluster > 1 && config.device.capability < 90))
    return refuse(kInvalidConfiguration, "clusters of " + std::to_string(launch.cluster) + " in a grid of " +
                                             std::to_string(launch.grid.x) + " on capability " +
                                             std::to_string(config.device.capability));
  size_t resident = size_t(resident_blocks(launch));
  if (launch.cooperative && blocks > resident)
    return refuse(kCooperativeLaunchTooLarge,
                  std::to_string(blocks) + " cooperative blocks, " + std::to_string(resident) + " fit");
  return kSuccess;
}

}  // namespace

int resident_blocks(const Launch& launch) {
  constexpr size_t kThreads = 2048, kBlocks = 32, kReserved = 1 << 10;  // of a multiprocessor; bytes of each block
  size_t shared = (config.device.shared_bytes + kReserved) / (launch.shared_bytes + kReserved);
  size_t of_each = std::min({kBlocks, kThreads / launch.block.count(), shared});
  return int(of_each) * (config.device.multiprocessors - config.device.taken);
}

const std::string& report() { return machine.report; }
void clear_report() { machine.report.clear(); }

Error run(const Launch& launch, void (*body)(void*), void* args) {
  if (Error error = check(launch); error != kSuccess) return error;
  if (machine.running) fail("a kernel launches a kernel", {});
  kernel_body = body;
  kernel_args = args;
  gridDim = launch.grid;
  blockDim = launch.block;
  machine.failed = false;
  seed_random(config.seed);
  size_t blocks = launch.grid.count(), wave = blocks;
  if (!launch.cooperative) {  // nothing promises that two blocks run at the same time, unless they are of one cluster
    size_t clusters = hostile() ? 1 + random_below(4) : config.device.multiprocessors / launch.cluster;
    wave = launch.cluster * std::max<size_t>(1, clusters);
  }
  if (config.watchdog_seconds > 0) set_watchdog(config.watchdog_seconds);
  for (size_t first = 0; first < blocks && !machine.failed; first += wave) {
    size_t count = std::min(wave, blocks - first);
    counts.threads += count * launch.block.count();
    set_up(launch, first, count);
    run_threads();
    take_down();
  }
  if (config.watchdog_seconds > 0) set_watchdog(0);
  if (!machine.failed) return kSuccess;
  constexpr const char* kPolicies[] = {"round-robin", "reverse", "random", "priority"};
  machine.report +=
      std::string("\n  schedule: ") + kPolicies[int(config.policy)] + ", seed " + std::to_string(config.seed);
  return kLaunchFailure;
}

}  // namespace emulator
