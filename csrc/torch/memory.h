// Memory of tensors that outlives them: on the CPU, a large one gets what an earlier one left.
#pragma once

#include <ATen/core/Tensor.h>

namespace fusedrnn {

// at::empty, but a large CPU tensor reuses the memory of one that was freed: malloc would return its pages to the
// system, and the next call would page-fault on all of them.
at::Tensor empty(at::IntArrayRef size, const at::TensorOptions& options);

// Gives back to the system what is kept for later tensors, and the scratch memory of this thread and of those that it
// shares work with.
void empty_cache();

}  // namespace fusedrnn
