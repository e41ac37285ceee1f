// Device side of device.cuh for nvcc. The emulator's twin is emulator/emulated_device.h.
#pragma once

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "../scan.h"

namespace fusedrnn::device {

// Polls of a wait that will never end: some 30 s, for a poll is a round trip to L2 and more. Then the kernel traps.
constexpr uint32_t kHangs = 1u << 26;

// ---- values

__host__ __device__ inline float widen(bfloat16 x) { return __bfloat162float(__ushort_as_bfloat16(x.bits)); }
__host__ __device__ inline float widen(float16 x) { return __half2float(__ushort_as_half(x.bits)); }
__host__ __device__ inline float widen(float x) { return x; }
__host__ __device__ inline double widen(double x) { return x; }

// Rounds to nearest, ties to even.
template <class T, class S>
__host__ __device__ inline T narrow(S x) {
  static_assert(sizeof(T) >= 4, "16 bits are made of float below");
  return static_cast<T>(x);
}
template <>
__host__ __device__ inline bfloat16 narrow<bfloat16, float>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
template <>
__host__ __device__ inline float16 narrow<float16, float>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}

// Rounds to TF32, ties away from zero, as tensor cores take it.
__device__ inline uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// The object at p, which may have been written as another type.
template <class T>
__device__ inline T load_as(const void* p) {
  return *static_cast<const T*>(p);
}

// x, in a register that the compiler does not make again, when it is short of them, from what it was made of: it does
// not know that a lane's own value comes back, nor that blocks have one row of threads. For whole warps.
template <class X>
__device__ inline X keep(X x) {
  return __shfl_sync(~0u, x + static_cast<X>(threadIdx.y), threadIdx.x % 32);
}

// ---- flags in global memory, seen by the whole device

__device__ inline uint32_t load_acquire(const uint32_t* p) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}
__device__ inline uint32_t load_relaxed(const uint32_t* p) {
  uint32_t value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}
__device__ inline void add_release(uint32_t* p, uint32_t value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}
__device__ inline void add_relaxed(uint32_t* p, uint32_t value) {
  asm volatile("red.relaxed.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}
__device__ inline uint32_t fetch_add_acq_rel(uint32_t* p, uint32_t value) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(p), "r"(value) : "memory");
  return before;
}

// Waits until a counter that only grows, and may wrap around, has reached the target; acquires.
__device__ inline void wait_for(const uint32_t* counter, uint32_t target) {
  for (uint32_t polls = 0; static_cast<int32_t>(load_acquire(counter) - target) < 0;)
    if (++polls == kHangs) __trap();
}

// ---- shared memory

__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char fusedrnn_shared_memory[];
  return fusedrnn_shared_memory;
}
__host__ __device__ inline size_t red_zone(unsigned char*, size_t) { return 0; }

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Copies 4, 8 or 16 aligned bytes of global into shared memory, or zeros if not valid, asynchronously.
template <int kBytes>
__device__ inline void copy_async(void* shared, const void* global, bool valid = true) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global)), "n"(kBytes), "r"(valid ? kBytes : 0)
                 : "memory");
}
__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kGroups of this thread's committed groups are still on their way.
template <int kGroups>
__device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// ---- tensor cores: d += a b, fragments as in the PTX manual. With g = lane / 4 and i = lane % 4:

// a [16, 16]: rows g, g + 8, g, g + 8 and columns 2i, 2i, 2i + 8, 2i + 8 on; b [16, 8]: rows 2i, 2i + 8 on, column g;
// d [16, 8]: rows g, g, g + 8, g + 8, columns 2i, 2i + 1, 2i, 2i + 1.
template <class T>
__device__ inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ inline void mma_m16n8k16<bfloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ inline void mma_m16n8k16<float16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// a [16, 8]: rows g, g + 8, g, g + 8, columns i, i, i + 4, i + 4; b [8, 8]: rows i, i + 4, column g; d as above.
__device__ inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four matrices of 8 x 8 16-bit values; lane l names row l % 8 of matrix l / 8, 16 aligned bytes of shared memory. A
// lane gets row g, columns 2i and 2i + 1 of each matrix.
__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
// All threads of a cooperative launch.
__device__ inline void grid_sync() { cooperative_groups::this_grid().sync(); }

}  // namespace fusedrnn::device
