#include "parallel.h"

#include <ATen/Parallel.h>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace fusedrnn {
namespace {

constexpr int kSpins = 500;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

// Only OpenMP starts all members at once; PyTorch's other pools run them one after another if they must.
int64_t max_threads() {
#ifdef _OPENMP
  return at::in_parallel_region() ? 1 : at::get_num_threads();
#else
  return 1;
#endif
}

void run_team(int64_t wanted, void (*run)(void*, int64_t, int64_t), void* context) {
  if (wanted <= 1) return run(context, 0, 1);
  at::parallel_for(0, wanted, 1, [&](int64_t begin, int64_t) {
    int64_t threads = 1;
#ifdef _OPENMP
    threads = omp_get_num_threads();  // at times fewer than asked for: parallel_for then hands out longer ranges
#endif
    int64_t share = (wanted + threads - 1) / threads;
    run(context, begin / share, (wanted + share - 1) / share);
  });
}

void Barrier::meet(int64_t members) {
  if (members == 1) return;
  uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    phase_.notify_all();
    return;
  }
  for (int i = 0; i < kSpins; ++i) {
    if (phase_.load(std::memory_order_acquire) != phase) return;
    pause();
  }
  phase_.wait(phase, std::memory_order_acquire);
}

}  // namespace fusedrnn
