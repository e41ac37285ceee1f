// Products of a block: sums[tile][row][unit] = weights[tile][unit][k] operands[row][k], summed over k.
//
// Operands lie in shared memory: of weights a group of 16 units after the other, [groups][tiles][16][ld]; of the other
// side a panel [rows][ld]. A warp makes all tiles of one group for all rows of the panel, over a part of the depth. The
// partial sums are reduced through shared memory, in a fixed order: each thread makes the sums of its (row, unit)
// pairs.
#pragma once

#include "device.cuh"
#include "plan.h"
#include "step_iterator.cuh"

namespace fusedrnn::cuda {

// How a tile is multiplied: sums[m][n] += tile m of 16 units by tile n of 8 rows, kDepth deep. With g = lane / 4 and
// i = lane % 4, a lane's four sums are of units g, g, g + 8, g + 8 and rows 2i, 2i + 1, 2i, 2i + 1.

// mma.sync: T is bfloat16, float16, or float, whose operands are TF32.
template <class T>
struct TensorCores {
  using Operand = T;
  using Sum = float;
  static constexpr bool kTensorCores = true;
  static constexpr int kDepth = 32 / sizeof(T);
  // For weights, in a kernel that multiplies M tiles by N: as many as spill nothing.
  static constexpr int held_registers(int M, int N, int pairs, bool plain) {
    if (N > 1) return plain ? 32 : 0;
    if (M == 1) return plain ? 96 : pairs > 2 ? 32 : 64;
    return pairs == 2 ? 64 : pairs > 2 && !plain ? 48 : 112;
  }

  __device__ static T operand(float x) {
    if constexpr (sizeof(T) == 4) {
      uint32_t bits = device::to_tf32(x);
      return device::load_as<float>(&bits);
    } else {
      return device::narrow<T>(x);
    }
  }

  template <int M>
  struct Weights {  // of M tiles
    uint32_t a[M][4];

    __device__ void load(const T* weights, int tile, int ld, int lane) {
#pragma unroll
      for (int m = 0; m < M; ++m)
        device::ldmatrix_x4(a[m], weights + m * tile + lane % 16 * ld + lane / 16 * (16 / sizeof(T)));
    }
  };

  template <int M, int N>
  __device__ static void multiply(Sum (&sums)[M][N][4], const Weights<M>& weights, const T* panel, int ld, int lane) {
    uint32_t b[N][2];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const T* at = panel + (n * kTileRows + lane / 4) * ld + lane % 4 * (4 / sizeof(T));
      b[n][0] = device::load_as<uint32_t>(at);
      b[n][1] = device::load_as<uint32_t>(at + 16 / sizeof(T));
    }
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int n = 0; n < N; ++n) {
        if constexpr (sizeof(T) == 4)
          device::mma_m16n8k8_tf32(sums[m][n], weights.a[m], b[n]);
        else
          device::mma_m16n8k16<T>(sums[m][n], weights.a[m], b[n]);
      }
  }
};

// Fused multiply-add in full precision: T is float or double.
template <class T>
struct MultiplyAdd {
  using Operand = T;
  using Sum = T;
  static constexpr bool kTensorCores = false;
  static constexpr int kDepth = 16 / sizeof(T);
  static constexpr int held_registers(int M, int N, int pairs, bool) {
    if (N > 1 || (pairs > 2 && sizeof(T) == 8)) return 0;
    return sizeof(T) == 8 ? 16 : pairs > 2 ? 0 : 64;
  }

  __device__ static T operand(T x) { return x; }

  struct alignas(16) Chunk {
    T k[kDepth];
  };
  template <int M>
  struct Weights {
    Chunk a[M][2];

    __device__ void load(const T* weights, int tile, int ld, int lane) {
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          a[m][half] = device::load_as<Chunk>(weights + m * tile + (lane / 4 + 8 * half) * ld);
    }
  };

  template <int M, int N>
  __device__ static void multiply(Sum (&sums)[M][N][4], const Weights<M>& weights, const T* panel, int ld, int lane) {
    const int i = lane % 4;
    Chunk b[N][2];
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int row = 0; row < 2; ++row) b[n][row] = device::load_as<Chunk>(panel + (n * kTileRows + 2 * i + row) * ld);
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
          for (int row = 0; row < 2; ++row)
#pragma unroll
            for (int k = 0; k < kDepth; ++k) sums[m][n][2 * half + row] += weights.a[m][half].k[k] * b[n][row].k[k];
  }
};

// Calls f with `count` as a constant, 0 .. kEnd - 1.
template <int kBegin, int kEnd, class F>
__device__ void with_constant(int count, F&& f) {
  if constexpr (kEnd - kBegin == 1) {
    f(std::integral_constant<int, kBegin>());
  } else {
    constexpr int kMiddle = (kBegin + kEnd) / 2;
    if (count < kMiddle)
      with_constant<kBegin, kMiddle>(count, f);
    else
      with_constant<kMiddle, kEnd>(count, f);
  }
}

// A warp's part of the product of a group: every stride-th piece of the depth. What a resident kernel multiplies in
// every step stays in registers, as far as they suffice: shared memory gives only 128 bytes a cycle.
template <class Math, int M, int N, int kPairs, bool kPlain>
struct Part {
  using Operand = typename Math::Operand;
  using Sum = typename Math::Sum;
  using Weights = typename Math::template Weights<M>;
  static constexpr int kHeld =
      Math::held_registers(M, N, kPairs, kPlain) * 4 / static_cast<int>(sizeof(Weights));  // pieces
  using Held = Weights[kHeld ? kHeld : 1];
  // Sums that grow side by side: on tensor cores a product waits 33 cycles for the one that it adds to.
  static constexpr int kChains = M * N < 4 ? 4 / (M * N) : 1;
  using Chains = Sum[kChains][M][N][4];

  int first, stride, depth;  // the warp's first piece, the distance to its next, and the end of all
  int tile, ld, lane;        // of weights and panel, in shared memory

  __device__ int held() const {
    const int pieces = depth > first ? (depth - first + stride - 1) / stride : 0;
    return pieces < kHeld ? pieces : kHeld;
  }
  __device__ void hold(Held& held, const Operand* weights) const {
#pragma unroll
    for (int h = 0; h < kHeld; ++h)
      if (int k = first + h * stride; k < depth) held[h].load(weights + k, tile, ld, lane);
  }

  // count: held(). Without a branch between them, tensor cores take one piece behind the other.
  __device__ void multiply(Sum (&sums)[M][N][4], int count, const Held& held, const Operand* weights,
                           const Operand* panel) const {
    Chains chains = {};
    auto multiply_held = [&](int h) {
      Math::multiply(chains[h % kChains], held[h], panel + first + h * stride, ld, lane);
    };
    with_constant<0, kHeld / kChains + 1>(count / kChains, [&](auto constant) {
      constexpr int kRounds = decltype(constant)::value;
#pragma unroll
      for (int h = 0; h < kRounds * kChains; ++h) multiply_held(h);
#pragma unroll
      for (int h = kRounds * kChains; h < (kRounds + 1) * kChains - 1 && h < kHeld; ++h)
        if (h < count) multiply_held(h);
    });
    for (int k = count < kHeld ? depth : first + kHeld * stride; k < depth;)
#pragma unroll
      for (int chain = 0; chain < kChains; ++chain, k += stride)
        if (k < depth) {
          Weights piece;
          piece.load(weights + k, tile, ld, lane);
          Math::multiply(chains[chain], piece, panel + k, ld, lane);
        }
    add_up(chains, sums);
  }

 private:
  __device__ static void add_up(const Chains& chains, Sum (&sums)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          sums[m][n][e] = chains[0][m][n][e];
#pragma unroll
          for (int chain = 1; chain < kChains; ++chain) sums[m][n][e] += chains[chain][m][n][e];
        }
  }
};

// Partial sums of a block's warps, in shared memory: [split][tile][group][row][16 units].
template <int M, int N, int kSplits, class Sum>
struct PartialSums {
  static constexpr int kGroups = kWarps / kSplits, kRows = N * kTileRows;
  static constexpr int kRow = kGroup + 4;  // 4: a warp's four rows of 8 units lie in different banks
  static constexpr int kCount = kWarps * M * kRows * kRow;
  Sum* sums;

  __device__ Sum* at(int split, int tile, int group, int row) const {
    return sums + (((split * M + tile) * kGroups + group) * kRows + row) * kRow;
  }
  __device__ void put(int split, int group, const Sum (&part)[M][N][4], int lane) const {
    Sum* to = at(split, 0, group, lane % 4 * 2) + lane / 4;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          to[(m * kGroups * kRows + n * kTileRows + e % 2) * kRow + e / 2 * 8] = part[m][n][e];
  }
  // Of a pair; bias [M][bias_ld].
  __device__ void take(int row, int unit, const Sum* bias, int bias_ld, Sum (&total)[M]) const {
    const Sum* from = at(0, 0, unit / kGroup, row) + unit % kGroup;
#pragma unroll
    for (int m = 0; m < M; ++m) {
      total[m] = bias[m * bias_ld + unit];
#pragma unroll
      for (int split = 0; split < kSplits; ++split) total[m] += from[(split * M + m) * kGroups * kRows * kRow];
    }
  }
};

// A number that is divided by in every step: by a multiplication, right while dividend times divisor is below 2^31.
struct Divisor {
  __device__ explicit Divisor(int divisor) : value(divisor), inverse(((1u << 31) + divisor - 1) / divisor) {}
  __device__ int quotient(int dividend) const {
    return static_cast<int>(static_cast<uint64_t>(dividend) * inverse >> 31);
  }

  int value;
  uint32_t inverse;
};

// Rows of 16-byte pieces from global into shared memory, by all threads of the block.
template <class E>
__device__ void copy_rows(E* shared, int ld, const E* global, int64_t stride, int rows, const Divisor& pieces) {
  constexpr int kPiece = 16 / sizeof(E);
  for (int i = threadIdx.x; i < rows * pieces.value; i += kThreads) {
    const int row = pieces.quotient(i), k = (i - row * pieces.value) * kPiece;
    device::copy_async<16>(shared + row * ld + k, global + row * stride + k);
  }
}

}  // namespace fusedrnn::cuda
