// Lists of tensors as operators and autograd pass them: one after the other.
#pragma once

#include "layer.h"

namespace fusedrnn {

// steps and last of each state, saved, hidden; and of gradients: steps and last of each state.
std::vector<at::Tensor> flatten(const ScanOutputs& outputs);
std::vector<at::Tensor> flatten(const ScanOutputGrads& grads);
ScanOutputs outputs_of(const std::vector<at::Tensor>& flat, size_t states);
ScanOutputGrads grads_of(const std::vector<at::Tensor>& flat, size_t states);

}  // namespace fusedrnn
