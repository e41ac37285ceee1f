// A layer as autograd sees it in eager mode: one node, whose backward pass is the kernels' or, where the gradients must
// be differentiable or nobody may read the tensors, Python's.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>
#include <vector>

#include "layer.h"

namespace fusedrnn {

// A layer given as Python has it: inputs is a tuple of the fields of ScanInputs. Returns steps and last of each state,
// undefined where there are none. Nothing is done where an argument is not plain (plain.h) or of a dtype without
// kernels, or where somebody watches: Python decides what then.
std::optional<std::vector<at::Tensor>> scan(const std::string& cell, bool sequences, bool recompute,
                                            pybind11::handle inputs);

// The fields of ScanInputs from a Python tuple, and back.
ScanInputs inputs_of(pybind11::handle tuple);
pybind11::tuple to_python(const ScanInputs& inputs);

// Registers the Python backward: gradients(cell, inputs, outputs, grads, wanted), with lists as in operators.h.
void set_gradients(pybind11::object gradients);

}  // namespace fusedrnn
