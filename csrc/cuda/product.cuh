// Products of a block: sums[tile][row][unit] = weights[tile][unit][k] operands[row][k], summed over k.
//
// Operands lie in shared memory: of weights a group of 16 units after the other, [groups][tiles][16][ld]; of the other
// side a panel [rows][ld]. A warp makes all tiles of one group for all rows of the panel, over a part of the depth. The
// parts meet in shared memory, where each thread finds the sums of its (row, unit) pairs in a fixed order.
#pragma once

#include "device.cuh"
#include "plan.h"
#include "walk.cuh"

namespace fusedrnn::cuda {

// How a tile is multiplied: sums[m][n] += tile m of 16 units by tile n of 8 rows, kDepth deep. With g = lane / 4 and
// i = lane % 4, a lane's four sums are of units g, g, g + 8, g + 8 and rows 2i, 2i + 1, 2i, 2i + 1.

// mma.sync: T is bfloat16, float16, or float, whose operands are TF32.
template <class T>
struct TensorCores {
  using Operand = T;
  using Sum = float;
  static constexpr int kDepth = 32 / sizeof(T);

  __device__ static T operand(float x) {
    if constexpr (sizeof(T) == 4) {
      uint32_t bits = device::to_tf32(x);
      return device::load_as<float>(&bits);
    } else {
      return device::narrow<T>(x);
    }
  }

  template <int M, int N>
  __device__ static void multiply(Sum (&sums)[M][N][4], const T* weights, int tile, const T* panel, int ld, int lane) {
    uint32_t b[N][2];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const T* at = panel + (n * kTileRows + lane / 4) * ld + lane % 4 * (4 / sizeof(T));
      b[n][0] = device::load_as<uint32_t>(at);
      b[n][1] = device::load_as<uint32_t>(at + 16 / sizeof(T));
    }
#pragma unroll
    for (int m = 0; m < M; ++m) {
      uint32_t a[4];
      device::ldmatrix_x4(a, weights + m * tile + lane % 16 * ld + lane / 16 * (16 / sizeof(T)));
#pragma unroll
      for (int n = 0; n < N; ++n) {
        if constexpr (sizeof(T) == 4)
          device::mma_m16n8k8_tf32(sums[m][n], a, b[n]);
        else
          device::mma_m16n8k16<T>(sums[m][n], a, b[n]);
      }
    }
  }
};

// Fused multiply-add in full precision: T is float or double.
template <class T>
struct MultiplyAdd {
  using Operand = T;
  using Sum = T;
  static constexpr int kDepth = 16 / sizeof(T);

  __device__ static T operand(T x) { return x; }

  template <int M, int N>
  __device__ static void multiply(Sum (&sums)[M][N][4], const T* weights, int tile, const T* panel, int ld, int lane) {
    struct alignas(16) Chunk {
      T k[kDepth];
    };
    const int g = lane / 4, i = lane % 4;
    Chunk b[N][2];
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int row = 0; row < 2; ++row) b[n][row] = device::load_as<Chunk>(panel + (n * kTileRows + 2 * i + row) * ld);
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Chunk a = device::load_as<Chunk>(weights + m * tile + (g + 8 * half) * ld);
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
          for (int row = 0; row < 2; ++row)
#pragma unroll
            for (int k = 0; k < kDepth; ++k) sums[m][n][2 * half + row] += a.k[k] * b[n][row].k[k];
      }
  }
};

// Where the sums of a block's warps meet: [split][tile][group][row][16 units].
template <int M, int N, class Sum>
struct Meeting {
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
__device__ void each_pair(const Meeting<M, N, Sum>& meeting, int64_t first_row, int64_t first_unit, int64_t rows,
                          int64_t width, F&& f) {
#pragma unroll
  for (int p = 0; p < kMost; ++p) {
    int i = threadIdx.x + p * kThreads;
    if (i >= meeting.pairs()) continue;
    int64_t n = first_row + meeting.row(i), j = first_unit + meeting.unit(i);
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
