// Thread-block clusters for nvcc: sm_90 and later. An older device never gets here, for the plan asks for none there.
#pragma once

#include <cstdint>

#include "device_ptx.cuh"

namespace fusedrnn::device {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// Barrier of all threads of the cluster: arriving releases, waiting acquires.
__device__ inline void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ inline void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// An mbarrier's phase ends when `count` arrivals and all bytes announced to it have come; then the next begins.
__device__ inline void mbarrier_init(uint64_t* barrier, unsigned count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
// Makes initialised barriers known to the cluster, with the cluster barrier that must follow.
__device__ inline void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void mbarrier_arrive_expect(uint64_t* barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// Waits for the end of the phase of this parity: 0 for the first, 1 for the second, 0 for the third ...
__device__ inline void mbarrier_wait(uint64_t* barrier, unsigned parity) {
  for (uint32_t polls = 0, done = 0; !done;) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n"
        "}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    if (++polls == kHangs) __trap();
  }
}
// Stores 16 bytes where `shared` lies in block `rank`, then counts them in that block's barrier.
__device__ inline void st_async16(void* shared, uint64_t* barrier, unsigned rank, uint4 value) {
  uint32_t peer_shared, peer_barrier;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(peer_shared) : "r"(shared_address(shared)), "r"(rank));
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(peer_barrier) : "r"(shared_address(barrier)), "r"(rank));
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%2,%3,%4,%5}, [%1];" ::"r"(peer_shared),
      "r"(peer_barrier), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
      : "memory");
}

#else

__device__ inline void cluster_arrive() { __trap(); }
__device__ inline void cluster_wait() { __trap(); }
__device__ inline void mbarrier_init(uint64_t*, unsigned) { __trap(); }
__device__ inline void mbarrier_init_fence() {}
__device__ inline void mbarrier_arrive_expect(uint64_t*, unsigned) { __trap(); }
__device__ inline void mbarrier_wait(uint64_t*, unsigned) { __trap(); }
__device__ inline void st_async16(void*, uint64_t*, unsigned, uint4) { __trap(); }

#endif

}  // namespace fusedrnn::device
