// The drivers of csrc/cuda, as nvcc compiled them, beside a CUDA runtime that launches nothing: it hands the name, the
// sizes and the arguments of every launch to a function. Pointers to tensors may be any numbers, for no kernel runs.
#include <cuda_runtime_api.h>

#include <map>
#include <stdexcept>
#include <string>

#include "../../tests/cuda_on_cpu/arrays.h"
#include "../../tests/cuda_on_cpu/driver.h"
#include "cells.h"
#include "cuda/plan.h"

namespace {

// kernel, 3 sizes of the grid, 3 of a block, blocks of a cluster, bytes of shared memory; pointers to the arguments
using OnLaunch = void (*)(const char* kernel, const int64_t* sizes, void** arguments);

struct Recorder {
  fusedrnn::Device device;
  OnLaunch on_launch;
  std::map<const void*, std::string> kernels;  // by their host function
};

Recorder& recorder() {
  static Recorder instance;
  return instance;
}

}  // namespace

#define STAND_IN extern "C" __attribute__((visibility("default")))

STAND_IN void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
STAND_IN void __cudaRegisterFatBinaryEnd(void**) {}
STAND_IN void __cudaUnregisterFatBinary(void**) {}
STAND_IN void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*,
                                     dim3*, int*) {
  recorder().kernels[host] = name;
}
STAND_IN cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { return cudaErrorNotSupported; }
STAND_IN cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) {
  return cudaErrorNotSupported;
}
STAND_IN unsigned __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return 1; }

cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "an error of the stand-in"; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const fusedrnn::Device& device = recorder().device;
  *value = attribute == cudaDevAttrMultiProcessorCount            ? device.multiprocessors
           : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? device.shared_bytes
           : attribute == cudaDevAttrComputeCapabilityMajor       ? device.capability / 10
           : attribute == cudaDevAttrComputeCapabilityMinor       ? device.capability % 10
                                                                  : 1;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->ptxVersion = attributes->binaryVersion = recorder().device.capability;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t, unsigned) {
  return *blocks = 1, cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t* config) {
  *clusters = recorder().device.multiprocessors / static_cast<int>(config->attrs[0].val.clusterDim.x);
  return cudaSuccess;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* host, void** arguments) {
  int64_t cluster = 1;
  for (unsigned i = 0; i < config->numAttrs; ++i)
    if (config->attrs[i].id == cudaLaunchAttributeClusterDimension) cluster = config->attrs[i].val.clusterDim.x;
  const dim3 &grid = config->gridDim, &block = config->blockDim;
  const int64_t sizes[] = {grid.x,  grid.y,  grid.z,  block.x,
                           block.y, block.z, cluster, static_cast<int64_t>(config->dynamicSmemBytes)};
  recorder().on_launch(recorder().kernels.at(host).c_str(), sizes, arguments);
  return cudaSuccess;
}

namespace fusedrnn {
namespace {

template <class Cell, class T>
int run(const Call& call, std::string* tier) {
  const Job job{call.backward != 0, traits_of<Cell>(), shape_of(call.sizes), sizeof(T)};
  const Arrays arrays(call.count, call.names, call.data);
  const ScanParams<T> params = params_of<T>(job.shape, arrays);
  auto allocate = [](size_t) { return reinterpret_cast<void*>(uintptr_t{1} << 44); };
  Plan plan;
  const int error = run_planned(job, recorder().device, call.tier, &plan, [&](const Plan& p) {
    const CudaRun run{p, call.tf32 != 0, nullptr, allocate};
    const CudaDriver<T> driver = cuda_driver<Cell, T>();
    return job.backward ? driver.backward(params, grads_of<T>(arrays), run) : driver.forward(params, run);
  });
  *tier = kTierNames[static_cast<int>(plan.tier)];
  return error;
}

template <class T, class... Cells>
int run_cell(const Call& call, CellList<Cells...>, std::string* tier) {
  int error = cudaErrorInvalidValue;
  auto try_one = [&]<class Cell>(std::type_identity<Cell>) {
    if (traits_of<Cell>().name == std::string(call.cell)) error = run<Cell, T>(call, tier);
  };
  (try_one(std::type_identity<Cells>{}), ...);
  return error;
}

}  // namespace
}  // namespace fusedrnn

// Launches a layer of DTYPE; device: the three numbers of a Device. Returns the tier, or what went wrong.
STAND_IN const char* record_layer(const Call* call, const int* device, OnLaunch on_launch) {
  using namespace fusedrnn;
  static std::string answer;
  recorder().device = {device[0], device[1], device[2]};
  recorder().on_launch = on_launch;
  try {
    if (const int error = run_cell<DTYPE>(*call, BuiltInCells{}, &answer)) answer = "error " + std::to_string(error);
  } catch (const std::invalid_argument& refused) {
    answer = refused.what();
  }
  return answer.c_str();
}
