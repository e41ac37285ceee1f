#include "parallel.h"

#include <ATen/Parallel.h>

namespace fusedrnn {

int64_t max_threads() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

void parallel_run(int64_t tasks, void (*run)(void*, int64_t), void* context) {
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) run(context, task);
  });
}

}  // namespace fusedrnn
