// The CUDA half of the border: what bindings.cpp calls for tensors on a GPU. Without CUDA nothing here is defined.
#pragma once

#include <ATen/core/Tensor.h>
#ifdef FUSEDRNN_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

#include "cuda/plan.h"
#include "scan.h"

namespace fusedrnn {

#ifdef FUSEDRNN_WITH_CUDA
constexpr bool kWithCuda = true;
#else
constexpr bool kWithCuda = false;
#endif

// x W_ih^T + b_ih of all steps, in the first `gates` planes of [D, R, planes, H]; saved values come in their place.
at::Tensor project_input(const at::Tensor& x, const at::Tensor* weights, const Shape& shape, int gates, int planes);

// For indices of packed rows: to the device without waiting for it.
at::Tensor copy_to_device(at::IntArrayRef values, const at::Device& device);

// On the current stream of x's device.
template <class T>
void run_forward(CellKind kind, const ScanParams<T>& params, const at::Tensor& x);
template <class T>
void run_backward(CellKind kind, const ScanParams<T>& params, const ScanGrads<T>& grads, const at::Tensor& x);

}  // namespace fusedrnn
