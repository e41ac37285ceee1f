// Layers as autograd sees them, with or without Python: one node, whose backward pass is the kernels' where it can be.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "layer.h"

namespace fusedrnn {

// A forward pass: run() makes the outputs of `layers`. The first has its x, that of each other is y of the one below
// and undefined here. With `sequences`, states but h are differentiable after every step, too, not only after the last.
struct ScanCall {
  const std::string& cell;
  bool sequences;
  at::ArrayRef<ScanInputs> layers;
  std::function<std::vector<ScanOutputs>()> run;
};

bool wants_gradients(const ScanInputs& inputs);

// Runs the pass as one node of autograd. steps and last of the result are differentiable, saved and hidden are not.
std::vector<ScanOutputs> scan_differentiably(const ScanCall& call);

// The eager call: shows the layer to a profiler, and is differentiable where grad mode and the inputs say so. Returns
// steps and last of each state, undefined where there are none. All tensors must be plain (plain.h).
std::vector<at::Tensor> scan(const std::string& cell, bool sequences, bool recompute, const ScanInputs& inputs);

// The same of layers as in a ScanCall, at the same time; see layer.h. Nothing is done where that is not possible or not
// faster.
std::optional<std::vector<std::vector<at::Tensor>>> scan_layers(const std::string& cell,
                                                                const std::vector<ScanInputs>& layers);

// What makes the gradients where the backward pass must be differentiable itself, or a tensor is not plain.
using Gradients = std::vector<at::Tensor> (*)(const std::string& cell, const ScanInputs& inputs,
                                              const ScanOutputs& outputs, const ScanOutputGrads& grads,
                                              const std::vector<bool>& wanted);
void set_gradients(Gradients gradients);

}  // namespace fusedrnn
