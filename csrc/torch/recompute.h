// The gates of a forward pass that kept only the states after its steps.
#pragma once

#include "layer.h"

namespace fusedrnn {

// Fills in saved and hidden: all rows take one step at once, each from the states it had before it. Where a state was
// not kept, and of one step, runs the forward pass again.
void recompute(const std::string& cell, const ScanInputs& inputs, ScanOutputs* outputs);

}  // namespace fusedrnn
