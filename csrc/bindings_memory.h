// Memory of tensors that outlives them: on the CPU, a large one gets what an earlier one left.
#pragma once

#include <ATen/core/Tensor.h>

namespace fusedrnn {

// at::empty. A training call makes large tensors and frees them at its end; malloc gives their pages back to the
// system, which fills each with zeros when the next call touches it (LSTM, T=100, N=64, H=512, two threads: 25,000 page
// faults, and a training call takes 0.93 of its time without them).
at::Tensor empty(at::IntArrayRef size, const at::TensorOptions& options);

// Gives back to the system what is kept for later tensors, and the scratch memory of this thread and of those that it
// shares work with.
void empty_cache();

}  // namespace fusedrnn
