// C = A B for the scan: A is a list of row pointers (states live wherever they were last written), B is packed in
// panels of up to kPanelVectors vectors of columns, C is an L1-resident tile. Each element of C is one chain of
// fused multiply-adds over k, whatever the tile: results do not depend on how rows are shared out among threads.
#pragma once

#include "vec.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

constexpr int kTileRows = 6;
constexpr int kPanelVectors = FUSEDRNN_VECTOR_BYTES == 64 ? 4 : 2;  // 6 x 4 of 32 registers, or 6 x 2 of 16
template <class S>
constexpr int64_t kPanel = kPanelVectors * Vec<S>::kLanes;

template <class S>
FUSEDRNN_FN int64_t padded(int64_t columns) {
  return (columns + Vec<S>::kLanes - 1) / Vec<S>::kLanes * Vec<S>::kLanes;
}

// B [K, padded(N)] where B[k][n] = w[n * n_stride + k * k_stride]: panel after panel, row k of a panel contiguous.
template <class T, class S>
void pack(const T* w, int64_t n_count, int64_t n_stride, int64_t k_count, int64_t k_stride, S* packed) {
  for (int64_t n0 = 0; n0 < n_count; n0 += kPanel<S>) {
    int64_t width = n_count - n0 < kPanel<S> ? n_count - n0 : kPanel<S>, padded_width = padded<S>(width);
    for (int64_t k0 = 0; k0 < k_count; k0 += 16) {  // blocks: the strided side of a transposition stays in L1
      int64_t k1 = k0 + 16 < k_count ? k0 + 16 : k_count;
      for (int64_t n = 0; n < padded_width; ++n) {
        const T* column = w + (n0 + n) * n_stride;
        for (int64_t k = k0; k < k1; ++k)
          packed[k * padded_width + n] = n < width ? widen(column[k * k_stride]) : S(0);
      }
    }
    packed += k_count * padded_width;
  }
}

template <class S>
FUSEDRNN_FN const S* panel_at(const S* packed, int64_t k_count, int64_t n0) {
  return packed + k_count * n0;
}

// One register tile: c[m][0 .. NV vectors) = init[m] + sum_k a[m][k] b[k].
template <int M, int NV, class T, class S>
void multiply_tile(const T* const* a, int64_t k_count, const S* b, const S* init, int64_t init_stride, S* c,
                   int64_t c_stride) {
  using V = Vec<S>;
  const T* row[M];
  V sum[M][NV];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    row[m] = a[m];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) sum[m][v] = V::load(init + m * init_stride + v * V::kLanes);
  }
  for (int64_t k = 0; k < k_count; ++k, b += NV * V::kLanes) {
    V column[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) column[v] = V::load(b + v * V::kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      V value(widen(row[m][k]));
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) sum[m][v] = sum[m][v] + column[v] * value;
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) sum[m][v].store(c + m * c_stride + v * V::kLanes);
}

template <class T, class S>
using MultiplyTile = void (*)(const T* const*, int64_t, const S*, const S*, int64_t, S*, int64_t);

template <int M, class T, class S>
FUSEDRNN_FN MultiplyTile<T, S> tile_of(int vectors) {
  if constexpr (kPanelVectors > 2) {
    if (vectors == 4) return multiply_tile<M, 4, T, S>;
    if (vectors == 3) return multiply_tile<M, 3, T, S>;
  }
  return vectors == 2 ? multiply_tile<M, 2, T, S> : multiply_tile<M, 1, T, S>;
}

// c[m] = init[m] + a[m] B for any number of rows and the first columns of one panel. An init_stride of 0 adds one bias
// to all rows; init = c accumulates.
template <class T, class S>
void multiply(int64_t rows, int64_t columns, const T* const* a, int64_t k, const S* panel, const S* init,
              int64_t init_stride, S* c, int64_t c_stride) {
  int vectors = static_cast<int>(padded<S>(columns) / Vec<S>::kLanes);
  auto full = tile_of<kTileRows, T, S>(vectors);
  for (; rows >= kTileRows; rows -= kTileRows) {
    full(a, k, panel, init, init_stride, c, c_stride);
    a += kTileRows, init += kTileRows * init_stride, c += kTileRows * c_stride;
  }
  MultiplyTile<T, S> rest[] = {nullptr, tile_of<1, T, S>(vectors), tile_of<2, T, S>(vectors),
                               tile_of<3, T, S>(vectors), tile_of<4, T, S>(vectors), tile_of<5, T, S>(vectors)};
  if (rows) rest[rows](a, k, panel, init, init_stride, c, c_stride);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
