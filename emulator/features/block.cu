// Threads of one block: barriers, warps, asynchronous copies.
#include "features.h"

using namespace fusedrnn;
using namespace fusedrnn::device;

namespace {

// ---- block

template <bool kBarrier>
__global__ void reverse_block(float* out) {
  float* s = Carver(shared_memory()).take<float>(blockDim.x);
  s[threadIdx.x] = float(threadIdx.x);
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];
}
template <bool kBarrier>
bool block_barrier() {
  Floats out(128);
  launch({.grid = 1, .block = 128, .shared_bytes = 512}, &reverse_block<kBarrier>, out.data());
  return equal(out, [](int i) { return 127 - i; });
}

template <bool kBarrier>
__global__ void reverse_warp(float* out) {  // without the barrier it relies on lock step
  float* s = Carver(shared_memory()).take<float>(32);
  s[threadIdx.x] = float(threadIdx.x);
  if (kBarrier) __syncwarp();
  out[threadIdx.x] = s[31 - threadIdx.x];
}
template <bool kBarrier>
bool warp_barrier() {
  Floats out(32);
  launch({.grid = 1, .block = 32, .shared_bytes = 128}, &reverse_warp<kBarrier>, out.data());
  return equal(out, [](int i) { return 31 - i; });
}

__global__ void two_places(float* out) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
  out[threadIdx.x] = 0;
}
bool divergent_barrier() {
  Floats out(64);
  launch({.grid = 1, .block = 64}, &two_places, out.data());
  return true;
}

__global__ void some_leave(float* out) {
  if (threadIdx.x >= 32) return;
  __syncthreads();
  out[threadIdx.x] = 0;
}
bool early_exit() {
  Floats out(64);
  launch({.grid = 1, .block = 64}, &some_leave, out.data());
  return true;
}

// ---- warps

__global__ void shuffles(float* out) {
  float lane = float(threadIdx.x % 32), sum = lane;
  for (int width = 16; width; width /= 2) sum += __shfl_down_sync(~0u, sum, width);
  out[threadIdx.x] =
      __shfl_sync(~0u, sum, 0) + 1000 * __shfl_xor_sync(~0u, lane, 3) + __shfl_up_sync(~0u, lane, 1, 16) / 32;
}
bool warp_shuffles() {
  Floats out(64);
  launch({.grid = 1, .block = 64}, &shuffles, out.data());
  return equal(out, [](int i) {
    int lane = i % 32;
    return 31 * 16 + 1000.f * (lane ^ 3) + (lane % 16 ? lane - 1 : lane) / 32.f;
  });
}

__global__ void half_a_warp(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.f, 1);
}
bool partial_warp() {
  Floats out(32);
  launch({.grid = 1, .block = 32}, &half_a_warp, out.data());
  return true;
}

__global__ void lanes_part(float* out) {
  float x = float(threadIdx.x);
  if (threadIdx.x < 16)
    x = __shfl_xor_sync(~0u, x, 1);
  else
    x = __shfl_xor_sync(~0u, x, 2);
  out[threadIdx.x] = x;
}
bool divergent_warp() {
  Floats out(32);
  launch({.grid = 1, .block = 32}, &lanes_part, out.data());
  return true;
}

// ---- asynchronous copies

template <int kWait, bool kBarrier>
__global__ void copy_in(float* out, const float* in) {
  float* s = Carver(shared_memory()).take<float>(256);
  copy_async<4>(s + threadIdx.x, in + threadIdx.x);
  copy_async_commit();
  copy_async<4>(s + 64 + threadIdx.x, in + 64 + threadIdx.x, threadIdx.x < 60);
  copy_async_commit();
  copy_async_wait<kWait>();
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = s[63 - threadIdx.x] + s[64 + 63 - threadIdx.x];
  copy_async_wait<0>();
}
template <int kWait, bool kBarrier>
bool copies() {
  alignas(16) float in[128];
  for (int i = 0; i < 128; ++i) in[i] = float(i);
  Floats out(64);
  launch({.grid = 1, .block = 64, .shared_bytes = 1024}, &copy_in<kWait, kBarrier>, out.data(), in);
  return equal(out, [](int i) { return 63 - i + (63 - i < 60 ? 64 + 63 - i : 0); });
}

__global__ void copy_shifted(const float* in) {
  float* s = Carver(shared_memory()).take<float>(64);
  copy_async<16>(s, in + 1);
  copy_async_commit();
  copy_async_wait<0>();
}
bool misaligned_copy() {
  alignas(16) float in[8] = {};
  launch({.grid = 1, .block = 32, .shared_bytes = 256}, &copy_shifted, in);
  return true;
}

__global__ void copy_and_go(const float* in) {
  float* s = Carver(shared_memory()).take<float>(64);
  copy_async<4>(s + threadIdx.x, in + threadIdx.x);
  copy_async_commit();
}
bool abandoned_copy() {
  alignas(16) float in[32] = {};
  launch({.grid = 1, .block = 32, .shared_bytes = 256}, &copy_and_go, in);
  return true;
}

}  // namespace

Features block_features() {
  return {
      {"block_barrier", block_barrier<true>},
      {"block_barrier_missing", block_barrier<false>},
      {"warp_barrier", warp_barrier<true>},
      {"warp_barrier_missing", warp_barrier<false>},
      {"divergent_barrier", divergent_barrier},
      {"early_exit", early_exit},
      {"warp_shuffles", warp_shuffles},
      {"partial_warp", partial_warp},
      {"divergent_warp", divergent_warp},
      {"copies", copies<0, true>},
      {"copies_wait_for_too_few", copies<1, true>},
      {"copies_without_barrier", copies<0, false>},
      {"misaligned_copy", misaligned_copy},
      {"abandoned_copy", abandoned_copy},
  };
}
