// csrc/cuda/device.cuh for g++, on top of the emulator. Its twins for nvcc are csrc/cuda/device_*.cuh; the comments are
// there.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "emulator.h"
#include "scan.h"

// ---- CUDA's own names

__forceinline__ void __syncthreads(EMULATOR_SITE) { emulator::block_barrier(EMULATOR_HERE); }
__forceinline__ void __syncwarp(uint32_t mask = ~0u, EMULATOR_SITE) { emulator::warp_barrier(mask, EMULATOR_HERE); }

namespace emulator {
template <class T>
T shuffle_as(Shuffle kind, uint32_t mask, T value, int lane, int width, Site site) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = shuffle(kind, mask, bits, lane, width, site);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
}  // namespace emulator

template <class T>
T __shfl_sync(uint32_t mask, T value, int lane, int width = 32, EMULATOR_SITE) {
  return emulator::shuffle_as(emulator::Shuffle::kIndex, mask, value, lane, width, EMULATOR_HERE);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, int delta, int width = 32, EMULATOR_SITE) {
  return emulator::shuffle_as(emulator::Shuffle::kUp, mask, value, delta, width, EMULATOR_HERE);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, int delta, int width = 32, EMULATOR_SITE) {
  return emulator::shuffle_as(emulator::Shuffle::kDown, mask, value, delta, width, EMULATOR_HERE);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lanes, int width = 32, EMULATOR_SITE) {
  return emulator::shuffle_as(emulator::Shuffle::kXor, mask, value, lanes, width, EMULATOR_HERE);
}

namespace fusedrnn::device {

// ---- host side

using emulator::Launch;
using Error = emulator::Error;
using Stream = void*;
constexpr Error kSuccess = emulator::kSuccess;

struct Properties {
  int multiprocessors, shared_bytes, capability;
};

inline const char* error_name(Error error) { return error == kSuccess ? "no error" : emulator::report().c_str(); }

inline Error properties(Properties* out) {
  const emulator::Device& device = emulator::config.device;
  *out = {device.multiprocessors, device.shared_bytes, device.capability};
  return kSuccess;
}

template <class... P, class... A>
inline Error launch(const Launch& launch, void (*kernel)(P...), A&&... args) {
  struct Call {
    void (*kernel)(P...);
    std::tuple<P...> args;
  } call{kernel, {static_cast<P>(args)...}};
  auto body = [](void* p) {
    auto& call = *static_cast<Call*>(p);
    std::apply(call.kernel, call.args);
  };
  return emulator::run(launch, body, &call);
}

template <class... P>
inline Error resident_blocks(const Launch& launch, void (*)(P...), int* blocks) {
  *blocks = emulator::resident_blocks(launch);
  return kSuccess;
}

template <class... P>
inline Error resident_clusters(const Launch& launch, void (*kernel)(P...), int* clusters) {
  resident_blocks(launch, kernel, clusters);
  *clusters = emulator::config.device.capability < 90 ? 0 : *clusters / int(launch.cluster);
  return kSuccess;
}

// ---- values

inline float widen(bfloat16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }
inline float widen(float16 x) { return static_cast<float>(std::bit_cast<emulator::Half>(x)); }
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }

template <class T, class S>
inline T narrow(S x) {
  static_assert(sizeof(T) >= 4, "16 bits are made of float below");
  return static_cast<T>(x);
}
template <>
inline bfloat16 narrow<bfloat16, float>(float x) {
  auto bits = std::bit_cast<uint32_t>(x);
  return {static_cast<uint16_t>(x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
inline float16 narrow<float16, float>(float x) {
  return std::bit_cast<float16>(static_cast<emulator::Half>(x));
}

inline uint32_t to_tf32(float x) { return (std::bit_cast<uint32_t>(x) + 0x1000) & 0xffffe000; }  // of finite values

template <class X>
X keep(X x) {
  return x;
}

template <class T>
__forceinline__ T load_as(const void* p, EMULATOR_SITE) {
  if (reinterpret_cast<uintptr_t>(p) % alignof(T)) emulator::fail("load_as is misaligned", EMULATOR_HERE);
  return *static_cast<const T*>(p);
}
// ---- flags: through __atomic, whose order ThreadSanitizer sees

inline uint32_t load_acquire(const uint32_t* p, EMULATOR_SITE) {
  emulator::before_load(p, EMULATOR_HERE);
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
inline uint32_t load_relaxed(const uint32_t* p, EMULATOR_SITE) {
  emulator::before_load(p, EMULATOR_HERE);
  return __atomic_load_n(p, __ATOMIC_RELAXED);
}
inline uint32_t fetch_add(uint32_t* p, uint32_t value, int order) {
  emulator::before_store();
  uint32_t before = __atomic_fetch_add(p, value, order);
  emulator::after_store();
  return before;
}
inline void add_release(uint32_t* p, uint32_t value) { fetch_add(p, value, __ATOMIC_RELEASE); }
inline void add_relaxed(uint32_t* p, uint32_t value) { fetch_add(p, value, __ATOMIC_RELAXED); }
inline uint32_t fetch_add_acq_rel(uint32_t* p, uint32_t value) { return fetch_add(p, value, __ATOMIC_ACQ_REL); }

inline void wait_for(const uint32_t* counter, uint32_t target, EMULATOR_SITE) {
  while (static_cast<int32_t>(load_acquire(counter, site_file, site_line) - target) < 0) {
  }
}

// ---- shared memory

using emulator::red_zone;
using emulator::shared_memory;

template <int kBytes>
inline void copy_async(void* shared, const void* global, bool valid = true, EMULATOR_SITE) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  emulator::copy_async(shared, global, kBytes, valid, EMULATOR_HERE);
}
inline void copy_async_commit() { emulator::copy_async_commit(); }
template <int kGroups>
inline void copy_async_wait() {
  emulator::copy_async_wait(kGroups);
}

// ---- tensor cores

template <class T>
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMULATOR_SITE) {
  static_assert(std::is_same_v<T, bfloat16> || std::is_same_v<T, float16>);
  auto kind = std::is_same_v<T, bfloat16> ? emulator::Mma::kBfloat16 : emulator::Mma::kFloat16;
  emulator::mma(kind, d, a, b, EMULATOR_HERE);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMULATOR_SITE) {
  emulator::mma(emulator::Mma::kTf32, d, a, b, EMULATOR_HERE);
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, EMULATOR_SITE) {
  emulator::ldmatrix_x4(r, row, EMULATOR_HERE);
}
// ---- barriers and clusters

inline void grid_sync(EMULATOR_SITE) { emulator::grid_barrier(EMULATOR_HERE); }

using emulator::mbarrier_init_fence;
inline void cluster_arrive(EMULATOR_SITE) { emulator::cluster_arrive(EMULATOR_HERE); }
inline void cluster_wait(EMULATOR_SITE) { emulator::cluster_wait(EMULATOR_HERE); }
inline void mbarrier_init(uint64_t* barrier, unsigned count, EMULATOR_SITE) {
  emulator::mbarrier_init(barrier, count, EMULATOR_HERE);
}
inline void mbarrier_arrive_expect(uint64_t* barrier, unsigned bytes, EMULATOR_SITE) {
  emulator::mbarrier_arrive_expect(barrier, bytes, EMULATOR_HERE);
}
inline void mbarrier_wait(uint64_t* barrier, unsigned parity, EMULATOR_SITE) {
  emulator::mbarrier_wait(barrier, parity, EMULATOR_HERE);
}
inline void st_async16(void* shared, uint64_t* barrier, unsigned rank, uint4 value, EMULATOR_SITE) {
  emulator::store_async(shared, barrier, rank, &value, EMULATOR_HERE);
}

}  // namespace fusedrnn::device
