// Host side of device.cuh for nvcc: launches and questions to the device. Errors are returned, never thrown.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace fusedrnn::device {

using Error = cudaError_t;
using Stream = cudaStream_t;
constexpr Error kSuccess = cudaSuccess;

struct Launch {
  dim3 grid, block;
  unsigned cluster = 1;      // blocks of a cluster, along x
  size_t shared_bytes = 0;   // dynamic shared memory of a block
  bool cooperative = false;  // all blocks run at once, or the launch fails
  Stream stream = nullptr;
};

struct Properties {
  int multiprocessors;
  int shared_bytes;  // the most one block may have
  int capability;    // 90 for compute capability 9.0
};

inline const char* error_name(Error error) { return cudaGetErrorString(error); }

// Of the current device.
inline Error properties(Properties* out) {
  int device = 0, major = 0, minor = 0;
  Error error = cudaGetDevice(&device);
  auto ask = [&](int* value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, attribute, device);
  };
  ask(&out->multiprocessors, cudaDevAttrMultiProcessorCount);
  ask(&out->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  ask(&major, cudaDevAttrComputeCapabilityMajor);
  ask(&minor, cudaDevAttrComputeCapabilityMinor);
  out->capability = 10 * major + minor;
  return error;
}

// Lets a kernel be launched with more shared memory and larger clusters than every device has.
template <class... P>
inline Error permit(void (*kernel)(P...), const Launch& launch) {
  constexpr size_t kAlwaysPermitted = 48 << 10;
  Error error = cudaSuccess;
  if (launch.shared_bytes > kAlwaysPermitted)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(launch.shared_bytes));
  if (error == cudaSuccess && launch.cluster > 8)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return error;
}

// A launch in the runtime's words. The attributes are referred to, so it must stay where it is.
struct LaunchConfig {
  explicit LaunchConfig(const Launch& launch) {
    config.gridDim = launch.grid;
    config.blockDim = launch.block;
    config.dynamicSmemBytes = launch.shared_bytes;
    config.stream = launch.stream;
    config.attrs = attributes;
    if (launch.cluster > 1) {
      cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = launch.cluster;
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    }
    if (launch.cooperative) {
      cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    }
  }
  LaunchConfig(const LaunchConfig&) = delete;

  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};
};

template <class... P, class... A>
inline Error launch(const Launch& launch, void (*kernel)(P...), A&&... args) {
  Error error = permit(kernel, launch);
  if (error != cudaSuccess) return error;
  LaunchConfig prepared(launch);
  return cudaLaunchKernelEx(&prepared.config, kernel, static_cast<P>(args)...);
}

// How many blocks of this launch run at once on the whole device: the most a cooperative launch may have.
template <class... P>
inline Error resident_blocks(const Launch& launch, void (*kernel)(P...), int* blocks) {
  Properties device = {};
  Error error = properties(&device);
  if (error == cudaSuccess) error = permit(kernel, launch);
  int threads = int(launch.block.x * launch.block.y * launch.block.z);
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, threads, launch.shared_bytes);
  *blocks *= device.multiprocessors;
  return error;
}

// How many clusters of this launch run at once; 0 where the device has no clusters or none as large, or runs what was
// compiled for one that has none.
template <class... P>
inline Error resident_clusters(const Launch& launch, void (*kernel)(P...), int* clusters) {
  cudaFuncAttributes compiled;
  Error error = cudaFuncGetAttributes(&compiled, kernel);
  if (error == cudaSuccess) error = permit(kernel, launch);
  if (error != cudaSuccess) return error;
  *clusters = 0;
  if (compiled.ptxVersion < 90) return cudaSuccess;
  LaunchConfig prepared(launch);
  return cudaOccupancyMaxActiveClusters(clusters, kernel, &prepared.config);
}

}  // namespace fusedrnn::device
