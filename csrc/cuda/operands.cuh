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
  // The same, with what each step asks for in registers.
  __device__ Tiling kept() const {
    Tiling tiling = *this;
    tiling.groups = device::keep(groups), tiling.depth = device::keep(depth);
    return tiling;
  }
};

template <class Math>
struct Operands {
  using Operand = typename Math::Operand;

  Operand* weights;          // [D, blocks, groups, tiles, 16, depth]
  typename Math::Sum* bias;  // [D, blocks, tiles, units]
  Operand* in;               // [D, rows, depth]         panel of the step
  Operand* out;              // [D, rows, planes out * out_plane]   panel of the step after it
};

// Packs the weights, a tile of 16 units after the other.
template <class Stage, class Math, class T>
__device__ void pack_weights(const Args<T>& a, const Tiling& tiling, typename Math::Operand* packed) {
  const Shape& s = a.p.shape;
  const int64_t width = Stage::width(s), plane_depth = Stage::plane_depth(s);
  const int64_t groups = int64_t{tiling.blocks} * tiling.groups, tiles = s.directions * groups * Stage::kTiles;
  const Divisor depth(tiling.depth), plane_size(tiling.plane);
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {  // of [D, blocks, groups, tiles]
    const int tile = static_cast<int>(index % Stage::kTiles);
    const int64_t group = index / Stage::kTiles;
    const Weights<T>& weights = group < groups ? a.p.weights[0] : a.p.weights[1];
    for (int i = threadIdx.x; i < kGroup * tiling.depth; i += kThreads) {
      // the index that runs fastest is the one that does so in the matrix that is read
      const int j = Stage::kTransposed ? i % kGroup : depth.quotient(i);
      const int k = Stage::kTransposed ? i / kGroup : i - j * tiling.depth;
      const int plane = plane_size.quotient(k), in_plane = k - plane * tiling.plane;
      const int64_t unit = group % groups * kGroup + j;
      const bool real = unit < width && in_plane < plane_depth;
      const Arithmetic<T> value = real ? device::widen(Stage::weight(weights, s, tile, unit, plane, in_plane)) : 0;
      packed[(index * kGroup + j) * tiling.depth + k] = Math::operand(value);
    }
  }
}

template <class Stage, class T, class Sum>
__device__ void pack_bias(const Args<T>& a, const Tiling& tiling, Sum* packed) {
  constexpr int M = Stage::kTiles;
  const int64_t blocks = int64_t{a.p.shape.directions} * tiling.blocks, units = tiling.units();
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < blocks * M * units; i += gridDim.x * kThreads) {
    const int64_t block = i / units / M, unit = block % tiling.blocks * units + i % units;
    const Weights<T>& weights = block < tiling.blocks ? a.p.weights[0] : a.p.weights[1];
    const bool real = unit < Stage::width(a.p.shape);
    packed[i] = real ? Stage::bias(weights, a.p.shape, static_cast<int>(i / units % M), unit) : Sum(0);
  }
}

template <class Stage, class Math, class T>
__device__ void pack_first_panel(const Args<T>& a, const Tiling& tiling, typename Math::Operand* panel) {
  const int64_t depth = Stage::plane_depth(a.p.shape);
  for (int64_t row = blockIdx.x; row < a.p.shape.directions * tiling.rows; row += gridDim.x) {
    const int64_t n = row % tiling.rows;
    const StepIterator<T> it(a.p, row < tiling.rows ? 0 : 1, Stage::kBackward, depth);
    for (int k = threadIdx.x; k < tiling.depth; k += kThreads)
      panel[row * tiling.depth + k] =
          Math::operand(n < a.p.shape.rows && k < depth ? Stage::first(it, n, k) : Arithmetic<T>(0));
  }
}

template <class Stage, class Math, class T>
__global__ void __launch_bounds__(kThreads) prepare_kernel(const Args<T> a, Tiling tiling, Operands<Math> o,
                                                           bool first_panel, uint32_t* counters, int counter_count) {
  const Shape& s = a.p.shape;
  const int64_t begin = blockIdx.x * int64_t{kThreads} + threadIdx.x, stride = gridDim.x * int64_t{kThreads};
  pack_weights<Stage, Math>(a, tiling, o.weights);
  pack_bias<Stage>(a, tiling, o.bias);
  if (first_panel) pack_first_panel<Stage, Math>(a, tiling, o.in);
  for (int64_t i = begin; i < counter_count; i += stride) counters[i] = 0;
#pragma unroll
  for (int state = 0; state < kMaxStates; ++state)
    if (Arithmetic<T>* sums = a.dresets[state])
      for (int64_t i = begin; i < s.directions * s.rows * s.width(state); i += stride) sums[i] = 0;
}

}  // namespace fusedrnn::cuda
