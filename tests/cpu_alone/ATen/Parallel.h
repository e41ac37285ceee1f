// Stands in for PyTorch's thread pool: threads of its own, which ThreadSanitizer can follow.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

#define AT_PARALLEL_OPENMP 1

namespace stand_in {

inline int threads = 1;            // at::get_num_threads()
inline int most = 1;               // threads that come where more are asked for
inline thread_local int team = 1;  // threads at work beside this one, itself counted
inline thread_local int member = 0;

}  // namespace stand_in

namespace at {

inline int get_num_threads() { return stand_in::threads; }
inline int get_thread_num() { return stand_in::member; }
inline bool in_parallel_region() { return stand_in::team > 1; }

}  // namespace at

inline int torch_parallel_for(int64_t begin, int64_t end, int64_t grain, void (*f)(int64_t, int64_t, void*),
                              void* context) {
  int64_t ranges = (end - begin + grain - 1) / grain;
  int64_t members = std::min<int64_t>({ranges, stand_in::threads, stand_in::most});
  if (members <= 1 || at::in_parallel_region()) {
    if (begin < end) f(begin, end, context);
    return 0;
  }
  int64_t range = (end - begin + members - 1) / members;
  auto work = [&](int64_t member) {
    stand_in::team = static_cast<int>(members), stand_in::member = static_cast<int>(member);
    int64_t first = begin + member * range;
    if (first < end) f(first, std::min(first + range, end), context);
    stand_in::team = 1, stand_in::member = 0;
  };
  std::vector<std::thread> others;
  for (int64_t member = 1; member < members; ++member) others.emplace_back(work, member);
  work(0);
  for (std::thread& other : others) other.join();
  return 0;
}
