// The CUDA half of the border: the input projection, a plan, scratch memory, the stream, and errors with their names.
#include "cuda.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

namespace fusedrnn {
namespace {

using at::Tensor;

bool rnn_uses_tf32() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::RNN) ==
         at::Float32Precision::TF32;
}

Device ask_device() {
  auto ask = [](cudaDeviceAttr attribute) {
    int device = 0, value = 0;
    C10_CUDA_CHECK(cudaGetDevice(&device));
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
    return value;
  };
  const int capability = 10 * ask(cudaDevAttrComputeCapabilityMajor) + ask(cudaDevAttrComputeCapabilityMinor);
  TORCH_CHECK(capability >= kOldestCapability, "fusedrnn: its kernels need a GPU of compute capability ",
              kOldestCapability / 10, ".0 or later, this one has ", capability / 10, ".", capability % 10);
  Device device{ask(cudaDevAttrMultiProcessorCount), ask(cudaDevAttrMaxSharedMemoryPerBlockOptin), capability};
  if (ask_for_clusters(&device)) cudaGetLastError();  // without clusters, then
  return device;
}

// The current device, asked once. c10's headers suffice: ATen/cuda's would ask for those of cuBLAS, cuSPARSE and more.
const Device& this_device() {
  static std::mutex mutex;
  static std::map<int, Device> devices;
  std::lock_guard lock(mutex);
  const auto index = c10::cuda::current_device();
  auto known = devices.find(index);
  if (known == devices.end()) known = devices.emplace(index, ask_device()).first;
  return known->second;
}

template <class F>
void launch(const Job& job, const Tensor& x, F&& scan) {
  c10::cuda::CUDAGuard guard(x.device());
  const char* forced = std::getenv("FUSEDRNN_PLAN");
  Tensor memory;
  auto allocate = [&](size_t bytes) {
    memory = at::empty({static_cast<int64_t>(bytes)}, x.options().dtype(at::kByte));
    return memory.data_ptr();
  };
  void* stream = c10::cuda::getCurrentCUDAStream(x.get_device()).stream();
  Plan plan;
  const int error = run_planned(job, this_device(), forced ? forced : "", &plan, [&](const Plan& chosen) {
    const int failed = scan(CudaRun{chosen, job.tf32, stream, allocate});
    if (failed) cudaGetLastError();  // said below, if no tier can do it; torch would say it at its next launch
    return failed;
  });
  if (error == 0) return;
  const Shape& s = job.shape;
  const char* what =
      error == kNoRoom ? "its blocks cannot all be co-resident" : cudaGetErrorString(static_cast<cudaError_t>(error));
  TORCH_CHECK(false, "fusedrnn: the ", kTierNames[static_cast<int>(plan.tier)], job.backward ? " backward" : " forward",
              " kernel for T=", s.steps, ", N=", s.rows, ", H=", s.hidden, ", P=", s.projected, ", D=", s.directions,
              ", ", x.scalar_type(), " failed: ", what);
}

}  // namespace

struct RnnPrecision::Setting {
  static at::Float32Precision get() {
    return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL);
  }
  static void set(at::Float32Precision precision) {
    at::globalContext().setFloat32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL, precision);
  }

  ~Setting() {
    if (changed) set(before);
  }

  // torch has this setting once for all threads: while it is changed, other calls of this package wait.
  static std::recursive_mutex mutex;
  std::lock_guard<std::recursive_mutex> lock{mutex};
  const at::Float32Precision before = get();
  bool changed = false;
  std::optional<at::NoTF32Guard> ieee;
};

std::recursive_mutex RnnPrecision::Setting::mutex;

RnnPrecision::RnnPrecision(const Tensor& x) {
  if (!x.is_cuda() || x.scalar_type() != at::kFloat) return;
  setting_ = std::make_unique<Setting>();
  if (!rnn_uses_tf32())
    setting_->ieee.emplace();
  else if (setting_->before != at::Float32Precision::TF32)
    setting_->changed = true, Setting::set(at::Float32Precision::TF32);
}

RnnPrecision::~RnnPrecision() = default;

Tensor project_input(const ScanInputs& in, const Shape& s, int gates, int planes) {
  RnnPrecision precision(in.x);
  Tensor projected = at::empty({s.directions, s.packed_rows, planes, s.hidden}, in.x.options());
  Tensor rows = in.x.reshape({s.packed_rows, in.x.size(-1)});
  for (int d = 0; d < s.directions; ++d) {
    Tensor out = projected[d].flatten(1).narrow(1, 0, gates * s.hidden);
    if (in.is_projected())
      out.copy_(rows.narrow(1, d * gates * s.hidden, gates * s.hidden));
    else if (in.b_ih.empty())
      at::mm_out(out, rows, in.w_ih[d].t());
    else
      at::linear_out(out, rows, in.w_ih[d], in.b_ih[d]);
  }
  return projected;
}

Device gpu(int index) {
  c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(index));
  return this_device();
}

Tensor copy_to_device(at::IntArrayRef values, const at::Device& device) {
  Tensor pinned =
      at::empty({static_cast<int64_t>(values.size())}, at::TensorOptions().dtype(at::kLong).pinned_memory(true));
  std::copy(values.begin(), values.end(), pinned.data_ptr<int64_t>());
  if (c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None) {
    // Every replay of the graph copies from this memory, so it stays: 8 bytes a step of each captured call.
    static std::mutex mutex;
    static auto* kept = new std::vector<Tensor>;  // never destroyed: CUDA may be gone at the end of the process
    std::lock_guard lock(mutex);
    kept->push_back(pinned);
  }
  return pinned.to(device, /*non_blocking=*/true);
}

template <class T>
void run_forward(const CellDrivers& cell, const ScanParams<T>& params, const Tensor& x) {
  launch({false, cell.traits, params.shape, sizeof(T), rnn_uses_tf32()}, x,
         [&](const CudaRun& run) { return std::get<CudaDriver<T>>(cell.cuda).forward(params, run); });
}

template <class T>
void run_backward(const CellDrivers& cell, const ScanParams<T>& params, const ScanGrads<T>& grads, const Tensor& x) {
  launch({true, cell.traits, params.shape, sizeof(T), rnn_uses_tf32()}, x,
         [&](const CudaRun& run) { return std::get<CudaDriver<T>>(cell.cuda).backward(params, grads, run); });
}

#define FUSEDRNN_INSTANTIATE(T)                                                          \
  template void run_forward<T>(const CellDrivers&, const ScanParams<T>&, const Tensor&); \
  template void run_backward<T>(const CellDrivers&, const ScanParams<T>&, const ScanGrads<T>&, const Tensor&);
FUSEDRNN_INSTANTIATE(float)
FUSEDRNN_INSTANTIATE(double)
FUSEDRNN_INSTANTIATE(bfloat16)
FUSEDRNN_INSTANTIATE(float16)
#undef FUSEDRNN_INSTANTIATE

}  // namespace fusedrnn
