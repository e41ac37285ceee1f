// The gradients that are sums over all steps, of what a CUDA kernel made of each: one GEMM each, by PyTorch. The CPU
// driver makes them itself (cpu/sums.h).
#pragma once

#include "layer.h"

namespace fusedrnn {

struct StepSums {
  at::Tensor dgates;    // [D, R, Q, H]
  at::Tensor h_prev;    // [D, R, P], or undefined: then it is y one step earlier
  at::Tensor dh_steps;  // [D, R, P] of a projection
};

// Writes the gradients of x and of the weights, as far as they are defined.
void sum_over_steps(const ScanInputs& inputs, const ScanOutputs& outputs, const StepSums& steps, ScanInputs* gradients);

}  // namespace fusedrnn
