// All that a kernel may ask of the device, in namespace fusedrnn::device, with two implementations: nvcc's is
// device_*.cuh; g++'s is the emulator of tests/cuda_on_cpu, which runs every kernel without a GPU. Beside it kernels
// use CUDA's own __global__, __launch_bounds__, threadIdx, blockIdx, blockDim, gridDim, dim3, uint4, float2, float4,
// double2, __syncthreads, __syncwarp, __shfl_*_sync and <cmath>, and nothing else: no CUDA header, asm, <<<>>>,
// __shared__, __CUDA_ARCH__ or atomic. What must hold for both implementations:
//
//   - threads wait for each other only by the functions below, never by spinning on plain memory
//   - warp operations name all 32 lanes, blocks are whole warps, and no thread leaves before its block's last barrier
//   - memory that another block writes during the kernel is read behind an acquire
//   - memory is read as the type it was written as, or through load_as
#pragma once

#include <cstddef>
#include <cstdint>

#include "../activations.h"
#include "../scan.h"

#ifdef __CUDACC__
#include "device_cluster.cuh"
#include "device_launch.cuh"
#include "device_ptx.cuh"
#else
#include "emulated_device.h"
#endif

namespace fusedrnn::device {

// Cuts dynamic shared memory into arrays. The same function of a kernel does it on the host, with a null base, to learn
// the bytes, and on the device to learn the pointers. What lies in an array's place is a pointer into that array, never
// one of a second carver: see red_zone.
class Carver {
 public:
  FUSEDRNN_FN explicit Carver(unsigned char* base) : base_(base) {}

  template <class T>
  FUSEDRNN_FN T* take(size_t count) {
    bytes_ = (bytes_ + kAlignment - 1) / kAlignment * kAlignment;
#ifdef __CUDA_ARCH__
    unsigned char* array = base_ + bytes_;
#else
    unsigned char* array = base_ ? base_ + bytes_ + gaps_ : nullptr;
#endif
    bytes_ += count * sizeof(T);
    gaps_ += red_zone(array, count * sizeof(T));
    return reinterpret_cast<T*>(array);
  }

  FUSEDRNN_FN size_t bytes() const { return bytes_; }

 private:
  static constexpr size_t kAlignment = 16;
  unsigned char* base_;
  size_t bytes_ = 0, gaps_ = 0;  // gaps: what the emulator leaves between arrays, a multiple of kAlignment
};

}  // namespace fusedrnn::device
