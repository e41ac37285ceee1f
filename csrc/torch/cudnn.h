// How long torch.nn's layer takes with cuDNN, by estimates: plain calls are left to it where it is faster.
#pragma once

#include "../cuda/plan.h"

namespace fusedrnn {

// A plain call of a module, as torch.nn would make it.
struct PlainCall {
  CellTraits cell;
  Shape shape;  // of one layer
  int layers;
  int value_bytes;
  bool float16, tf32, packed;
  bool training;  // the backward pass follows
};

namespace planning {

// What a step of cuDNN's kernels takes, in microseconds: forward, backward. Measurements may replace them.
struct CudnnCosts {
  double persistent[2] = {2.0, 3.1};  // reported for an H100, H=768, N=16
  double small[2] = {1.5, 2.2};       // assumed
  double launches[2] = {5, 7};        // of a GEMM and a cell a step: reported as 5 to 10
  double efficiency = 0.5;            // of a GEMM, of the tensor cores' peak
};
constexpr CudnnCosts kCudnnCosts;

// Products and sums of a multiprocessor in a cycle.
inline double operations(const PlainCall& call, const Device& device) {
  if (call.value_bytes == 8) return device.capability == 80 || device.capability == 90 ? 128 : 4;
  if (call.value_bytes == 4 && !call.tf32) return 256;
  const double half = device.capability >= 100 || device.capability == 90 ? 4096
                      : device.capability == 80                           ? 2048
                                                                          : 1024;
  return call.value_bytes == 2 ? half : half / 2;
}

// What PyTorch and cuDNN run a pass in: a kernel of float16 that keeps the weights in registers, one for few units, or
// a GEMM and the cell in each step.
enum class CudnnKernel { kPersistent, kSmall, kStepwise };
inline bool fits_persistent(const PlainCall& call) {
  const Shape& s = call.shape;
  const bool one = call.layers == 1 && s.directions == 1 && call.cell.gates == 4 && !call.packed;
  const bool whole = s.hidden % 128 == 0 && s.input % 128 == 0 && s.rows % 8 == 0;
  return call.float16 && one && whole && s.hidden <= 1024 && s.rows <= 128;
}
inline CudnnKernel cudnn_kernel(const PlainCall& call, bool backward) {
  if (fits_persistent(call)) return CudnnKernel::kPersistent;
  const int64_t few = (backward ? 128 : 192) * (call.cell.gates == 1 ? 2 : 1);
  const bool small = call.shape.hidden <= few && !call.packed && call.value_bytes < 8;
  return small ? CudnnKernel::kSmall : CudnnKernel::kStepwise;
}

inline double cudnn_step_us(const PlainCall& call, bool backward, const Device& device) {
  const CudnnKernel kernel = cudnn_kernel(call, backward);
  if (kernel == CudnnKernel::kPersistent) return kCudnnCosts.persistent[backward];
  if (kernel == CudnnKernel::kSmall) return kCudnnCosts.small[backward];
  const Shape& s = call.shape;
  const int64_t products = s.rows * call.cell.recurrent * s.hidden * s.projected * s.directions;
  const double rate = operations(call, device) * kCudnnCosts.efficiency * device.multiprocessors * kCosts.megahertz;
  return kCudnnCosts.launches[backward] + 2 * static_cast<double>(products) / rate;
}

}  // namespace planning

// Microseconds of the scans over time of all layers; what comes before and after them is the same GEMMs.
struct Estimates {
  double ours, cudnn;
};
inline Estimates compare_with_cudnn(const PlainCall& call, const Device& device) {
  Estimates sum{};
  for (bool backward : {false, true}) {
    if (backward && !call.training) break;
    const Job job{backward, call.cell, call.shape, call.value_bytes, call.tf32};
    const double step = planning::cudnn_step_us(call, backward, device), layers = call.layers;
    sum.cudnn += layers * static_cast<double>(call.shape.steps) * step;
    sum.ours += layers * planning::estimated_us(make_plan(job, device), job, device);
  }
  return sum;
}

}  // namespace fusedrnn
