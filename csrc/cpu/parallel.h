// The seam to PyTorch's thread pool, and how its threads wait for each other.
#pragma once

#include <atomic>
#include <cstdint>

namespace fusedrnn {

int64_t max_threads();  // torch.get_num_threads(), or 1 where threads must not be used
void run_team(int64_t wanted, void (*run)(void* context, int64_t member, int64_t members), void* context);

// Calls f(member, members) on each of `members` threads, which all run at the same time. There are as many as wanted,
// at most max_threads(), or fewer. When all have ended, the first exception of any is thrown.
template <class F>
void team(int64_t wanted, F&& f) {
  run_team(
      wanted, [](void* context, int64_t member, int64_t members) { (*static_cast<F*>(context))(member, members); }, &f);
}

// Where the members of a team wait for the last one. Waiting spins for some 20 us, longer than threads drift apart in a
// step, and then sleeps, so that a thread that lost its core to another process gets it back.
//
// A team ends early where a member fails, and where waiting takes longer than the team saves: the others leave at their
// next synchronisation, by an exception that does not get out of run().
class Barrier {
 public:
  // What one member does, with all calls of sync().
  template <class F>
  void run(F&& f) {
    try {
      f();
    } catch (const Left&) {
    } catch (...) {
      close();
      throw;
    }
  }

  void start_clock();  // before the first sync() that may end the team
  // True for one member at most, where the team ends here and the others have left.
  bool sync(int64_t members, bool may_end = false);
  bool ended() const { return phase_.load(std::memory_order_relaxed) & kClosed; }

 private:
  struct Left {};
  static constexpr uint32_t kClosed = uint32_t{1} << 31;

  void close();
  void spin(uint32_t phase) const;
  void sleep(uint32_t phase);
  bool takes_too_long(uint32_t phase, int64_t members);

  std::atomic<uint32_t> arrived_{0};
  std::atomic<uint64_t> asleep_{0};  // the phase in which a member fell asleep first, and when
  uint32_t start_ = 0, lost_ = 0;  // microseconds: when the team began, and how long others slept before the last came
  alignas(64) std::atomic<uint32_t> phase_{1};
};

// How many steps a layer has completed, for the one that takes its results at the same time: the layer above, or in the
// backward pass, whose steps count from the end, the layer below. Those that wait must be able to end: whoever cannot
// go on says that it is done.
class Progress {
 public:
  static constexpr int64_t kDone = INT64_MAX;

  void complete(int64_t steps);
  void wait_for(int64_t steps) const;

 private:
  alignas(64) std::atomic<int64_t> steps_{0};
};

// Does synchronising in every step pay now? Not for a while after a team was ended for its waiting.
bool syncing_pays();

}  // namespace fusedrnn
