// The seam to PyTorch's thread pool.
#pragma once

#include <cstdint>

namespace fusedrnn {

int64_t max_threads();  // torch.get_num_threads()
void parallel_run(int64_t tasks, void (*run)(void* context, int64_t task), void* context);

// Calls f(0) .. f(tasks - 1), one task a thread where there are as many.
template <class F>
void parallel_for(int64_t tasks, F&& f) {
  parallel_run(
      tasks, [](void* context, int64_t task) { (*static_cast<F*>(context))(task); }, &f);
}

}  // namespace fusedrnn
