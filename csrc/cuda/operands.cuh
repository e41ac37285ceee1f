// Operands of the products, prepared once a call: weights packed in the order in which a block reads them, rounded as
// the product takes them, and all sizes padded with zeros, so that no product has a tail and every piece of 16 bytes is
// aligned.
#pragma once

#include "product.cuh"

namespace fusedrnn::cuda {

constexpr int kCounterStride = 32;  // a counter's distance from the next: 128 bytes, a line of L2

struct Tiling {   // of one stage
  int groups;     // of a block
  int blocks;     // of a replica
  int plane;      // values of a plane that the product sums over, padded
  int depth;      // planes of them, side by side
  int out_plane;  // units of a replica, padded
  int64_t rows;   // of all replicas, padded

  FUSEDRNN_FN int units() const { return groups * kGroup; }
};

template <class Math>
struct Operands {
  using Operand = typename Math::Operand;

  Operand* weights;          // [D, blocks, groups, tiles, 16, depth]
  typename Math::Sum* bias;  // [D, blocks, tiles, units]
  Operand* in;               // [D, rows, depth]         panel of the step
  Operand* out;              // [D, rows, planes out * out_plane]   panel of the step after it
};

template <class Stage, class Math, class T>
__global__ void __launch_bounds__(kThreads) prepare_kernel(Args<T> a, Tiling tiling, Operands<Math> o, bool first_panel,
                                                           uint32_t* counters, int counter_count) {
  using S = Arithmetic<T>;
  constexpr int M = Stage::kTiles;
  const Shape& s = a.p.shape;
  const int64_t begin = blockIdx.x * int64_t{kThreads} + threadIdx.x, stride = gridDim.x * int64_t{kThreads};
  const int64_t width = Stage::width(s), plane_depth = Stage::plane_depth(s), D = s.directions;

  const int64_t groups = int64_t{tiling.blocks} * tiling.groups, rows = D * groups * M * kGroup;
  for (int64_t i = begin; i < rows * tiling.depth; i += stride) {
    // the index that runs fastest is the one that does so in the matrix that is read
    int64_t k = Stage::kTransposed ? i / kGroup % tiling.depth : i % tiling.depth;
    int64_t j = Stage::kTransposed ? i % kGroup : i / tiling.depth % kGroup;
    int64_t tile_index = i / kGroup / tiling.depth;  // [D, blocks, groups, tiles]
    int tile = static_cast<int>(tile_index % M), plane = static_cast<int>(k / tiling.plane);
    int64_t unit = tile_index / M % groups * kGroup + j, in_plane = k % tiling.plane;
    int d = static_cast<int>(tile_index / M / groups);
    S value = 0;
    if (unit < width && in_plane < plane_depth)
      value = device::widen(Stage::weight(d ? a.p.weights[1] : a.p.weights[0], s, tile, unit, plane, in_plane));
    o.weights[(tile_index * kGroup + j) * tiling.depth + k] = Math::operand(value);
  }
  for (int64_t i = begin; i < D * M * tiling.out_plane; i += stride) {
    int64_t unit = i % tiling.units(), tile = i / tiling.units() % M, block = i / tiling.units() / M;
    int d = static_cast<int>(block / tiling.blocks);
    unit += block % tiling.blocks * tiling.units();
    bool real = unit < width;
    o.bias[i] = real ? Stage::bias(d ? a.p.weights[1] : a.p.weights[0], s, static_cast<int>(tile), unit) : S(0);
  }
  if (first_panel)
    for (int64_t i = begin; i < D * tiling.rows * tiling.depth; i += stride) {
      int64_t k = i % tiling.depth, n = i / tiling.depth % tiling.rows;
      StepIterator<T> it(a.p, static_cast<int>(i / tiling.depth / tiling.rows), Stage::kBackward);
      o.in[i] = Math::operand(n < s.rows && k < plane_depth ? Stage::first(it, n, k) : S(0));
    }
  for (int64_t i = begin; i < counter_count; i += stride) counters[i] = 0;
#pragma unroll
  for (int state = 0; state < kMaxStates; ++state)
    if (S* sums = a.dresets[state])
      for (int64_t i = begin; i < D * s.rows * s.width(state); i += stride) sums[i] = 0;
}

}  // namespace fusedrnn::cuda
