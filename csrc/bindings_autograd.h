// A layer as autograd sees it: one node, whose backward pass is the kernels' or, to be differentiable, the reference's.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/utils/pybind.h>

#include <array>
#include <optional>
#include <string>
#include <vector>

namespace fusedrnn {

// x, h0, c0, batch_sizes, lengths, reset, reset_h, reset_c, h_mask, zone_h and zone_c of a layer.
using Args = std::array<std::optional<at::Tensor>, 11>;

// Returns y, h_n (unless y is it), c_n, c_steps, saved, hidden: the last two only when training, c only of an LSTM.
std::vector<at::Tensor> scan_forward(const std::string& mode, bool training, bool c_sequence, const Args& args,
                                     const std::vector<at::Tensor>& weights);

// The same without saved and hidden, and differentiable; given as Python has them, args as a list or tuple of tensors
// and None. Where it is not asked for, c_steps is not made or not given. Nothing is done where an argument is not plain
// (bindings_plain.h) or of a dtype without kernels, or where somebody watches: what then, Python says.
std::optional<std::vector<at::Tensor>> scan(const std::string& mode, bool c_sequence, bool recompute,
                                            pybind11::handle args, pybind11::handle weights);

// Returns the gradients of x, h0, c0, reset_h, reset_c and the weights, undefined where not wanted.
// outputs: y, c_steps, saved, hidden, the first two not of one step; grads: of y, h_n, c_n, c_steps.
std::vector<at::Tensor> scan_backward(const std::string& mode, const Args& args, const std::vector<at::Tensor>& weights,
                                      const std::vector<at::Tensor>& outputs, const std::vector<at::Tensor>& grads,
                                      const std::vector<bool>& wanted);

// Who makes the gradients where Python is needed, with the arguments of scan_backward and whether the kernels may read
// all of them and nobody watches.
void set_gradients(pybind11::object gradients);

}  // namespace fusedrnn
