#include "parallel.h"

#include <ATen/Parallel.h>
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <stdexcept>

namespace fusedrnn {
namespace {

constexpr int64_t kSpin = 20;            // microseconds
constexpr int kPausesBetweenLooks = 16;  // at the clock
constexpr uint32_t kPatience = 2000;  // microseconds a member may cost the others: a time slice of a scheduler, about
constexpr int64_t kShortPause = 16'000, kLongPause = 1'000'000;  // microseconds

int64_t microseconds() {
  auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::microseconds>(now).count();
}

// Of all teams that synchronise in every step: when they may be tried again, and how long that was put off.
std::atomic<int64_t> resumption{0}, latest_pause{0};

// A pause is twice as long as the one before, unless that one has been over for a while.
void pause_syncing() {
  int64_t now = microseconds(), latest = latest_pause.load(std::memory_order_relaxed);
  bool soon = now - resumption.load(std::memory_order_relaxed) < kLongPause;
  latest = soon && latest ? std::min(2 * latest, kLongPause) : kShortPause;
  latest_pause.store(latest, std::memory_order_relaxed);
  resumption.store(now + latest, std::memory_order_relaxed);
}

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");  // some 10 ns; `yield` is none
#endif
}

}  // namespace

// Only OpenMP starts all members at once; PyTorch's other pools run them one after another if they must.
int64_t max_threads() {
#if AT_PARALLEL_OPENMP
  return at::in_parallel_region() ? 1 : at::get_num_threads();
#else
  return 1;
#endif
}

namespace {

struct Team {
  int64_t wanted;
  void (*run)(void*, int64_t, int64_t);
  void* context;
  std::atomic_flag failed{};
  std::exception_ptr error{};

  // One thread's range of the `wanted` members. Where threads are fewer, ranges are longer: all of a length but the
  // last.
  void work(int64_t begin, int64_t end) {
    int64_t thread = at::get_thread_num(), part = thread ? begin / thread : end;
    try {
      run(context, begin / part, (wanted + part - 1) / part);
    } catch (...) {
      if (!failed.test_and_set()) error = std::current_exception();
    }
  }
};

}  // namespace

// at::parallel_for as libtorch holds it compiled, with the OpenMP it was built with: this library needs none of its own
// and brings no second one along. The C interface lets no exception through.
void run_team(int64_t wanted, void (*run)(void*, int64_t, int64_t), void* context) {
  if (wanted <= 1) return run(context, 0, 1);
  Team team{wanted, run, context};
  auto work = [](int64_t begin, int64_t end, void* all) { static_cast<Team*>(all)->work(begin, end); };
  if (torch_parallel_for(0, wanted, 1, work, &team)) throw std::runtime_error("fusedrnn: PyTorch started no threads");
  if (team.error) std::rethrow_exception(team.error);
}

bool syncing_pays() {
  int64_t time = resumption.load(std::memory_order_relaxed);
  return !time || microseconds() >= time;
}

void Barrier::start_clock() { start_ = static_cast<uint32_t>(microseconds()); }

bool Barrier::sync(int64_t members, bool may_end) {
  if (members == 1) return false;
  uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (phase & kClosed) throw Left();
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members) {
    arrived_.store(0, std::memory_order_relaxed);
    bool ends = takes_too_long(phase, members) && may_end;
    phase_.store((phase + 1) | (ends ? kClosed : 0), std::memory_order_release);
    phase_.notify_all();
    if (ends) pause_syncing();
    return ends;
  }
  spin(phase);
  if (phase_.load(std::memory_order_acquire) == phase) sleep(phase);
  if (phase_.load(std::memory_order_acquire) & kClosed) throw Left();
  return false;
}

// No sync() can return without the member that closes: only the one that all are waiting in, or the next.
void Barrier::close() {
  phase_.fetch_or(kClosed, std::memory_order_release);
  phase_.notify_all();
}

void Barrier::spin(uint32_t phase) const {
  for (int64_t end = microseconds() + kSpin; microseconds() < end;)
    for (int i = 0; i < kPausesBetweenLooks; ++i) {
      if (phase_.load(std::memory_order_acquire) != phase) return;
      pause();
    }
}

void Barrier::sleep(uint32_t phase) {
  uint64_t before = asleep_.load(std::memory_order_relaxed), now = static_cast<uint32_t>(microseconds());
  if (before >> 32 != phase) asleep_.compare_exchange_strong(before, uint64_t{phase} << 32 | now);
  phase_.wait(phase, std::memory_order_acquire);
}

// Asked by the last to come. Whoever carries on alone takes `members` times as long as a team that never waits.
bool Barrier::takes_too_long(uint32_t phase, int64_t members) {
  uint64_t asleep = asleep_.load(std::memory_order_relaxed);
  if (asleep >> 32 == phase) lost_ += static_cast<uint32_t>(microseconds()) - static_cast<uint32_t>(asleep);
  if (lost_ < kPatience * (members - 1)) return false;
  return lost_ > (static_cast<uint32_t>(microseconds()) - start_) / members * (members - 1);
}

void Progress::complete(int64_t steps) {
  steps_.store(steps, std::memory_order_release);
  steps_.notify_all();
}

void Progress::wait_for(int64_t steps) const {
  int64_t end = microseconds() + kSpin;
  for (int64_t now; (now = steps_.load(std::memory_order_acquire)) < steps;)
    if (microseconds() < end)
      pause();
    else
      steps_.wait(now, std::memory_order_acquire);
}

}  // namespace fusedrnn
