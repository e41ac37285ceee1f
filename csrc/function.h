// How small functions are declared that both the CPU's drivers and CUDA kernels inline.
#pragma once

#ifdef __CUDACC__
#define FUSEDRNN_FN __host__ __device__ inline
#else
#define FUSEDRNN_FN inline __attribute__((always_inline))
#endif
