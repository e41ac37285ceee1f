#include "scheduler.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>

#include "sanitizers.h"

namespace emulator {

Config config;
Counts counts;
Machine machine;

namespace {

constexpr int kLooks = 3;            // how often all pollers look again before it is a deadlock
constexpr unsigned kIdlePolls = 64;  // polls of different flags before a thread that makes no progress is parked
constexpr uint64_t kWithinBlock = 0xffffff;  // the low bits of a priority; the rest is the block's

Fiber host;
std::vector<Thread*> ready, pollers;
size_t first_ready;  // round robin takes from the front
uint64_t random_state, progress_seen;
int looks;
char launch_token, end_token;

bool any_ready() { return ready.size() > first_ready; }

bool less_urgent(const Thread* a, const Thread* b) { return a->priority < b->priority; }

Thread* take_first() {
  Thread* thread = ready[first_ready++];
  if (first_ready == ready.size()) {
    ready.clear();
    first_ready = 0;
  } else if (first_ready > 8192 && 2 * first_ready > ready.size()) {
    size_t left = ready.size() - first_ready;
    raw_copy(reinterpret_cast<unsigned char*>(ready.data()), reinterpret_cast<unsigned char*>(&ready[first_ready]),
             left * sizeof(Thread*));
    ready.resize(left);
    first_ready = 0;
  }
  return thread;
}

Thread* take_last() {
  Thread* thread = ready.back();
  ready.pop_back();
  return thread;
}

Thread* take_urgent() {
  std::pop_heap(ready.begin(), ready.end(), less_urgent);
  Thread* thread = take_last();
  if (random_below(256) == 0) thread->block->priority = random_bits();
  if (random_below(64) == 0) thread->priority = random_bits() & kWithinBlock;
  return thread;
}

Thread* take_ready() {
  switch (config.policy) {
    case Policy::kRoundRobin:
      return take_first();
    case Policy::kReverse:
      return take_last();
    case Policy::kRandom:
      std::swap(ready[random_below(ready.size())], ready.back());
      return take_last();
    case Policy::kPriority:
      break;
  }
  return take_urgent();
}

void wake_pollers() {
  for (Thread* thread : pollers) make_ready(thread);
  pollers.clear();
}

void deliver(size_t i) {
  Message message = machine.messages[i];
  machine.messages[i] = machine.messages.back();
  machine.messages.pop_back();
  raw_copy(message.to, message.bytes, sizeof message.bytes);
  mbarrier_complete(message.barrier, sizeof message.bytes);
}

std::string coordinates(uint3 i) {
  return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

// Who waits where, one line for each place.
std::string census() {
  constexpr size_t kLines = 24;
  std::map<std::string, int> groups;
  for (const auto& thread : machine.threads)
    if (!thread->done)
      ++groups["of block " + coordinates(thread->block->index) + " " + (thread->waits ? thread->waits : "able to run") +
               " at " + place(thread->site)];
  std::string text;
  size_t lines = 0;
  for (const auto& [group, threads] : groups) {
    if (++lines > kLines) return text + "\n  and " + std::to_string(groups.size() - kLines) + " groups more";
    text += "\n  " + std::to_string(threads) + " threads " + group;
  }
  return text;
}

// The next thread to run; null when all are done or none ever can.
Thread* choose() {
  for (;;) {
    if (!machine.messages.empty() && (!any_ready() || !hostile() || random_below(16) == 0))
      deliver(random_below(machine.messages.size()));
    if (machine.progress != progress_seen) {
      progress_seen = machine.progress;
      looks = 0;
      wake_pollers();
    }
    if (any_ready()) return take_ready();
    if (!machine.messages.empty()) continue;
    if (machine.live == 0) return nullptr;
    if (pollers.empty() || looks++ == kLooks) {
      machine.failed = true;
      machine.report = "deadlock: no thread can run" + census();
      return nullptr;
    }
    wake_pollers();
  }
}

void switch_to(Thread* thread, bool dies = false) {  // null: the host
  Thread* from = machine.running;
  if (!thread) release(&end_token);
  ++counts.switches;
  machine.running = thread;
  if (thread) {
    threadIdx = thread->index;
    blockIdx = thread->block->index;
  }
  switch_fiber(from ? from->fiber : host, thread ? thread->fiber : host, dies);
}

}  // namespace

uint64_t random_bits() {  // splitmix64
  uint64_t z = (random_state += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

uint32_t random_below(uint32_t n) { return uint64_t{static_cast<uint32_t>(random_bits())} * n >> 32; }

bool hostile() { return config.policy == Policy::kRandom || config.policy == Policy::kPriority; }

std::string place(Site site) {
  if (!site.file) return "?";
  const char* slash = std::strrchr(site.file, '/');
  return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

void reset_scheduler(size_t threads) {
  constexpr size_t kRoom = 32768;
  ready.clear();
  pollers.clear();
  ready.reserve(2 * threads + kRoom);
  pollers.reserve(threads);
  first_ready = 0;
  progress_seen = machine.progress;
  looks = 0;
}

void seed_random(uint64_t seed) { random_state = seed * 0x9E3779B97F4A7C15u + 12345; }

void make_ready(Thread* thread) {
  thread->waits = nullptr;
  ready.push_back(thread);
  if (config.policy != Policy::kPriority) return;
  thread->priority = (thread->block->priority & ~kWithinBlock) | (thread->priority & kWithinBlock);
  std::push_heap(ready.begin(), ready.end(), less_urgent);
}

void run_threads() {
  adopt_host(host);
  release(&launch_token);
  switch_to(choose());
  acquire(&end_token);
}

void enter_kernel() {
  arrived_from_host(host);
  acquire(&launch_token);
}

void wait(const char* what, Site site) {
  Thread* self = machine.running;
  self->waits = what;
  self->site = site;
  if (Thread* next = choose(); next != self) switch_to(next);
}

void yield() {
  make_ready(machine.running);
  if (Thread* next = choose(); next != machine.running) switch_to(next);
}

void maybe_yield() {
  if (hostile() && random_below(4) == 0) yield();
}

void progress() {
  ++machine.progress;
  maybe_yield();
}

void retire() {
  release(&end_token);
  machine.running->done = true;
  --machine.live;
  ++machine.progress;
  switch_to(choose(), true);
  std::abort();
}

void fail(const std::string& what, Site site) {
  Thread* self = machine.running;
  machine.failed = true;
  machine.report = what + (site.file ? " at " + place(site) : "") + ", thread " + coordinates(self->index) +
                   " of block " + coordinates(self->block->index);
  switch_to(nullptr);
  std::abort();
}

void before_load(const void* p, Site site) {
  Thread* self = machine.running;
  ++counts.polls;
  bool idle = self->polled_at == machine.progress;
  self->idle_polls = idle ? self->idle_polls + 1 : 0;
  if (idle && (self->polled == p || self->idle_polls > kIdlePolls)) {
    pollers.push_back(self);
    wait("polling a flag", site);
  } else if (!hostile() || random_below(2) == 0) {
    yield();
  }
  self->polled = p;
  self->polled_at = machine.progress;
}

void before_store() { maybe_yield(); }
void after_store() { progress(); }

}  // namespace emulator
