// The CUDA half of the border: what layer.cpp calls for tensors on a GPU. Without CUDA nothing here is defined.
#pragma once

#include <ATen/core/Tensor.h>
#ifdef FUSEDRNN_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

#include <memory>

#include "../cuda/plan.h"
#include "../scan.h"
#include "layer.h"

namespace fusedrnn {

#ifdef FUSEDRNN_WITH_CUDA
constexpr bool kWithCuda = true;
#else
constexpr bool kWithCuda = false;
#endif

// While it lives, GEMMs of float32 on CUDA obey torch.backends.cudnn.rnn.fp32_precision, as torch.nn's layers do.
class RnnPrecision {
 public:
#ifdef FUSEDRNN_WITH_CUDA
  explicit RnnPrecision(const at::Tensor& x);
  ~RnnPrecision();

 private:
  struct Setting;
  std::unique_ptr<Setting> setting_;
#else
  explicit RnnPrecision(const at::Tensor&) {}
#endif
};

// x W_ih^T + b_ih of all steps, in the first `gates` planes of [D, R, planes, H], which saved values overwrite later.
at::Tensor project_input(const ScanInputs& inputs, const Shape& shape, int gates, int planes);

// For indices of packed rows: to the device without waiting for it.
at::Tensor copy_to_device(at::IntArrayRef values, const at::Device& device);

// A GPU, asked once.
Device gpu(int index);

// On the current stream of x's device.
template <class T>
void run_forward(const CellDrivers& cell, const ScanParams<T>& params, const at::Tensor& x);
template <class T>
void run_backward(const CellDrivers& cell, const ScanParams<T>& params, const ScanGrads<T>& grads, const at::Tensor& x);

}  // namespace fusedrnn
