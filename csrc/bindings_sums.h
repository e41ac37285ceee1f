// The gradients that are sums over all steps, of what a CUDA kernel made of each: one GEMM each, by PyTorch. The CPU
// driver makes them itself (cpu/sums.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

namespace fusedrnn {

// Returns the gradients of x and of the weights, undefined where not wanted.
// y may be undefined if there is but one step. dgates [D, R, Q, H], h_prev [D, R, P] or none: then it is y one step
// earlier; dh_steps [D, R, P] and hidden [D, R, H] of a projection, else none; wanted: of x and each of the weights.
std::vector<at::Tensor> sum_over_steps(const at::Tensor& x, const at::Tensor& h0, const at::Tensor& y,
                                       const std::vector<at::Tensor>& weights, const std::optional<at::Tensor>& hidden,
                                       const std::vector<bool>& wanted, const at::Tensor& dgates,
                                       const std::optional<at::Tensor>& h_prev,
                                       const std::optional<at::Tensor>& dh_steps);

}  // namespace fusedrnn
