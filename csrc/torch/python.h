// A layer as Python gives it: a tuple of the fields of ScanInputs.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>
#include <vector>

#include "layer.h"

namespace fusedrnn {

ScanInputs inputs_of(pybind11::handle tuple);

// The eager call of node.h. Nothing is done where an argument is not plain (plain.h) or of a dtype without kernels, or
// where somebody watches: Python decides what then.
std::optional<std::vector<at::Tensor>> scan(const std::string& cell, bool sequences, bool recompute,
                                            pybind11::handle inputs);

// The same of a list of such tuples by scan_layers of node.h. Nothing is done, too, where that does nothing.
std::optional<std::vector<std::vector<at::Tensor>>> scan_layers(const std::string& cell, pybind11::handle layers);

// run_packed (packed_layers.h) of a module's tensors and what it was called with; hx may be none, a tensor or several.
std::optional<std::vector<at::Tensor>> run_packed(const std::string& cell, int64_t layers, bool projects,
                                                  bool batch_first, pybind11::handle weights, pybind11::handle input,
                                                  pybind11::handle hx);

// Registers what node.h asks where its own backward pass will not do: gradients(cell, inputs, outputs, grads, wanted),
// with lists as in operators.h.
void set_gradients(pybind11::object gradients);

}  // namespace fusedrnn
