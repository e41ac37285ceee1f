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
  static constexpr int kDepth = 32 / sizeof(T);
  // For weights, in a kernel that multiplies M tiles by N: as many as spill nothing.
  static constexpr int held_registers(int M, int N) { return N > 1 ? (M > 1 ? 64 : 48) : M > 1 ? 112 : 80; }

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
  static constexpr int kDepth = 16 / sizeof(T);
  static constexpr int held_registers(int M, int N) {
    return N > 1 ? 24 : sizeof(T) == 8 ? (M > 1 ? 32 : 16) : (M > 1 ? 96 : 64);
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

// A warp's part of the product of a group: every parts-th piece of the depth. What a resident kernel multiplies in
// every step stays in registers, as far as they suffice: shared memory gives only 128 bytes a cycle.
template <class Math, int M, int N>
struct Part {
  using Operand = typename Math::Operand;
  using Sum = typename Math::Sum;
  using Weights = typename Math::template Weights<M>;
  static constexpr int kHeld = Math::held_registers(M, N) * 4 / static_cast<int>(sizeof(Weights));  // pieces
  using Held = Weights[kHeld ? kHeld : 1];
  // Sums that grow side by side: on tensor cores a product waits 33 cycles for the one that it adds to.
  static constexpr int kChains = M * N < 4 ? 4 / (M * N) : 1;

  int first, stride, depth;  // the warp's first piece, the distance to its next, and the end of all
  int tile, ld, lane;        // of weights and panel, in shared memory

  __device__ void hold(Held& held, const Operand* weights) const {
#pragma unroll
    for (int h = 0; h < kHeld; ++h)
      if (int k = first + h * stride; k < depth) held[h].load(weights + k, tile, ld, lane);
  }

  __device__ void multiply(Sum (&sums)[M][N][4], const Held& held, const Operand* weights, const Operand* panel) const {
    Sum chains[kChains][M][N][4] = {};
    int k = first;
#pragma unroll
    for (int h = 0; h < kHeld; ++h, k += stride)
      if (k < depth) Math::multiply(chains[h % kChains], held[h], panel + k, ld, lane);
    while (k < depth)
#pragma unroll
      for (int chain = 0; chain < kChains; ++chain, k += stride)
        if (k < depth) {
          Weights piece;
          piece.load(weights + k, tile, ld, lane);
          Math::multiply(chains[chain], piece, panel + k, ld, lane);
        }
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
template <int M, int N, class Sum>
struct PartialSums {
  static constexpr int kRows = N * kTileRows;
  static constexpr int kRow = kGroup + 4;  // 4: a warp's four rows of 8 units lie in different banks
  Sum* sums;
  int groups;

  FUSEDRNN_FN static size_t count(int groups) { return size_t(splits(groups)) * M * groups * kRows * kRow; }

  __device__ Sum* at(int split, int tile, int group, int row) const {
    return sums + (((split * M + tile) * groups + group) * kRows + row) * kRow;
  }
  __device__ void put(int split, int group, const Sum (&part)[M][N][4], int lane) const {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          at(split, m, group, n * kTileRows + lane % 4 * 2 + e % 2)[lane / 4 + e / 2 * 8] = part[m][n][e];
  }
  // Pair number i of the block: units of a group lie side by side, then rows, then groups.
  __device__ static int unit(int i) { return i / (kGroup * kRows) * kGroup + i % kGroup; }
  __device__ static int row(int i) { return i / kGroup % kRows; }
  __device__ int pairs() const { return groups * kGroup * kRows; }

  __device__ void take(int i, const Sum* bias, Sum (&total)[M]) const {  // bias [M][units]
    int group = i / (kGroup * kRows);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      total[m] = bias[m * groups * kGroup + unit(i)];
      for (int split = 0; split < splits(groups); ++split) total[m] += at(split, m, group, row(i))[i % kGroup];
    }
  }
};

// Calls f(p, i, n, j, real) with this thread's pairs: pair i of the block is its number p, of row n and unit j, real if
// the layer has those.
template <int kMost, int M, int N, class Sum, class F>
__device__ void each_pair(const PartialSums<M, N, Sum>& partial, int64_t first_row, int64_t first_unit, int64_t rows,
                          int64_t width, F&& f) {
#pragma unroll
  for (int p = 0; p < kMost; ++p) {
    int i = threadIdx.x + p * kThreads;
    if (i >= partial.pairs()) continue;
    int64_t n = first_row + partial.row(i), j = first_unit + partial.unit(i);
    f(p, i, n, j, n < rows && j < width);
  }
}

// Rows of 16-byte pieces from global into shared memory, by all threads of the block.
template <class E>
__device__ void copy_rows(E* shared, int ld, const E* global, int64_t stride, int rows, int depth) {
  constexpr int kPiece = 16 / sizeof(E);
  const int pieces = depth / kPiece;
  for (int i = threadIdx.x; i < rows * pieces; i += kThreads) {
    int row = i / pieces, k = i % pieces * kPiece;
    device::copy_async<16>(shared + row * ld + k, global + row * stride + k);
  }
}

}  // namespace fusedrnn::cuda
