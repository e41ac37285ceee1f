// Layers of packed weights (packed.h) without what a general call can ask for, so that one step costs little more than
// its kernel.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "../scan.h"

namespace fusedrnn {

// Refuses a block that holds no weights of such a layer, and an x that kernels for packed weights do not take.
void check_packed(const at::Tensor& block, const CellTraits& cell, const Shape& shape, const at::Tensor& x);

// The packed layers of a module, one above the other.
struct PackedLayers {
  std::string cell;
  int64_t layers;
  bool projects;                    // then there is a w_hr behind each packed tensor
  std::vector<at::Tensor> weights;  // of each layer and direction
};

// y and the states after the last step, of x [T, N, I] ([N, T, I] if batch_first) and states [L*D, N, width] or none
// for zeros. Nothing is done where these are not of the right kind or size.
std::optional<std::vector<at::Tensor>> run_packed(const PackedLayers& layers, bool batch_first, const at::Tensor& x,
                                                  std::vector<at::Tensor> states);

// Layers of one direction that take one step of the same rows in each call, and keep their states between calls.
class Stream {
 public:
  // zones: the share that each state keeps, 0 for no zoneout
  Stream(const PackedLayers& layers, int64_t rows, const std::vector<double>& zones);

  at::Tensor step(const at::Tensor& x);    // y [N, width] of x [N, I]
  std::vector<at::Tensor> states() const;  // copies [L, N, width]
  void set_states(const std::vector<at::Tensor>& states);

 private:
  struct OfLayer {
    ScanParams<float> params;
    std::vector<at::Tensor> states[2];  // read and written in turn
  };

  std::vector<at::Tensor> weights_;  // alive as long as params point to them
  std::vector<OfLayer> layers_;
  void (*forward_)(const ScanParams<float>&);
  int64_t offsets_[2], input_;
  size_t state_count_;
  bool turn_ = false;  // which of the states are those before the next step
};

}  // namespace fusedrnn
