// The seam to PyTorch's thread pool, and how its threads wait for each other.
#pragma once

#include <atomic>
#include <cstdint>

namespace fusedrnn {

int64_t max_threads();  // torch.get_num_threads(), or 1 where threads must not be used
void run_team(int64_t wanted, void (*run)(void* context, int64_t member, int64_t members), void* context);

// Calls f(member, members) on each of `members` threads, which all run at the same time. There are as many as wanted,
// at most max_threads(), or fewer.
template <class F>
void team(int64_t wanted, F&& f) {
  run_team(
      wanted, [](void* context, int64_t member, int64_t members) { (*static_cast<F*>(context))(member, members); }, &f);
}

// Where the members of a team wait for the last one. Waiting spins for some 20 us, longer than threads drift apart in a
// step, and then sleeps, so that a thread that lost its core to another process gets it back. With two busy processes
// on two cores a call takes 2.1 times as long (LSTM, T=100, N=32, H=512) to 3.5 times (N=16, H=128).
class Barrier {
 public:
  void meet(int64_t members);

 private:
  std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

}  // namespace fusedrnn
