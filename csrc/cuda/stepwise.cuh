// Tier stepwise: one kernel launch a step, or two with a projection. The recurrent product and the cell are fused, so
// that pre-activations never leave the multiprocessor; weights stream through shared memory.
#pragma once

#include "cells.cuh"
#include "operands.cuh"

namespace fusedrnn::cuda {

constexpr int kStepSplits = splits(kStepGroups);

template <class Stage, class Math, int N>
struct StepShared {
  using Operand = typename Math::Operand;
  using Sum = typename Math::Sum;
  using Partial = PartialSums<Stage::kTiles, N, kStepSplits, Sum>;
  static constexpr int kChunk = kChunkBytes / sizeof(Operand);  // depth that is in shared memory at a time, twice
  static constexpr int kLd = static_cast<int>(padded_row(kChunk, sizeof(Operand)));
  static constexpr int kPanelChunk = N * kTileRows * kLd;

  Operand *weights, *panel;  // two chunks of each
  Sum* sums;                 // reuses the chunks' memory after the last product
  int weight_rows;

  FUSEDRNN_FN size_t carve(unsigned char* base, const Tiling& tiling) {
    weight_rows = Stage::kTiles * tiling.units();
    const size_t chunks = 2 * (weight_rows * kLd + kPanelChunk);
    const size_t partial = Partial::kCount * sizeof(Sum) / sizeof(Operand);
    device::Carver carver(base);
    weights = carver.take<Operand>(chunks > partial ? chunks : partial);
    panel = weights + 2 * weight_rows * kLd;
    sums = reinterpret_cast<Sum*>(weights);
    return carver.bytes();
  }

  // Starts to copy a chunk of the depth; weights and panel of the block. After the last chunk an empty group of copies.
  __device__ void fetch(int chunk, const Tiling& tiling, const Operand* from_weights, const Operand* from_panel) const {
    const int k = chunk * kChunk, other = chunk & 1, left = depth(chunk, tiling);
    copy_chunk(weights + other * weight_rows * kLd, from_weights + k, tiling.depth, weight_rows, left);
    copy_chunk(panel + other * kPanelChunk, from_panel + k, tiling.depth, N * kTileRows, left);
    device::copy_async_commit();
  }
  __device__ static int depth(int chunk, const Tiling& tiling) {
    const int left = tiling.depth - chunk * kChunk;
    return left < kChunk ? left : kChunk;
  }
  __device__ static void copy_chunk(Operand* to, const Operand* from, int64_t stride, int rows, int depth) {
    constexpr int kPieces = kChunkBytes / 16, kPiece = kChunk / kPieces;
    const int k = threadIdx.x % kPieces * kPiece;
    for (int row = threadIdx.x / kPieces; row < rows && k < depth; row += kThreads / kPieces)
      device::copy_async<16>(to + row * kLd + k, from + row * stride + k);
  }

  // A warp's part of the product with a chunk.
  template <class Part>
  __device__ void multiply(int chunk, const Tiling& tiling, int split, int group, Part& part) const {
    const int lane = threadIdx.x % 32, end = depth(chunk, tiling);
    const Operand* of_group = weights + ((chunk & 1) * weight_rows + group * Stage::kTiles * kGroup) * kLd;
    for (int k = split * Math::kDepth; k < end; k += kStepSplits * Math::kDepth) {
      typename Math::template Weights<Stage::kTiles> piece;
      piece.load(of_group + k, kGroup * kLd, kLd, lane);
      Math::multiply(part, piece, panel + (chunk & 1) * kPanelChunk + k, kLd, lane);
    }
  }
};

// Of a multiprocessor: with one tile of sums and values of two bytes registers suffice for two.
template <class Stage, class T>
constexpr int kStepBlocks = sizeof(T) == 2 && Stage::kTiles == 1 ? 2 : 1;

// Block x of units, tile y of rows, direction z.
template <class Stage, class Math, int N, class T>
__global__ void __launch_bounds__(kThreads, kStepBlocks<Stage, T>)
    step_kernel(const Args<T> a, Tiling tiling, Operands<Math> o, int64_t step) {
  using Operand = typename Math::Operand;
  using Sum = typename Math::Sum;
  using Memory = StepShared<Stage, Math, N>;
  using Block = Cells<Stage, N, kStepGroups, T>;
  constexpr int M = Stage::kTiles;
  const int warp = threadIdx.x / 32, d = blockIdx.z, first_unit = blockIdx.x * tiling.units();
  const int64_t first_row = int64_t{blockIdx.y} * N * kTileRows, steps = a.p.shape.steps;
  const int64_t block_rows = (int64_t{d} * tiling.blocks + blockIdx.x) * M * tiling.units();
  const Operand* weights = o.weights + block_rows * tiling.depth;
  const Operand* in = o.in + (d * tiling.rows + first_row) * tiling.depth;

  Memory shared;
  shared.carve(device::shared_memory(), tiling);
  shared.fetch(0, tiling, weights, in);
  Block cells(a, d, first_row, first_unit, tiling.units());
  step ? cells.resume(step) : cells.start();
  if (step < steps) cells.read(cells.iterator().steps(step));
  cells.enter();

  const int split = warp % kStepSplits, group = warp / kStepSplits;
  const bool has_group = group < tiling.groups;
  Sum part[M][N][4] = {};
  for (int chunk = 0, chunks = (tiling.depth + Memory::kChunk - 1) / Memory::kChunk; chunk < chunks; ++chunk) {
    shared.fetch(chunk + 1, tiling, weights, in);
    device::copy_async_wait<1>();  // orders: this thread's copies of this chunk, before the barrier
    __syncthreads();               // orders: all copies of this chunk, before the product
    if (has_group) shared.multiply(chunk, tiling, split, group, part);
    __syncthreads();  // orders: the product, before the chunk after the next, or the sums, take its place
  }
  const typename Memory::Partial partial{shared.sums};
  if (has_group) partial.put(split, group, part, threadIdx.x % 32);
  __syncthreads();  // orders: all parts, before they are summed

  Sum sums[Block::kPairs][M] = {};
#pragma unroll
  for (int p = 0; p < Block::kPairs; ++p)
    partial.take(cells.layout.row(p), cells.unit(p), o.bias + block_rows, tiling.units(), sums[p]);
  if (step < steps) {
    Arithmetic<T> out[Block::kPairs][Stage::kPlanesOut];
    cells.step(sums, out);
#pragma unroll
    for (int p = 0; p < Block::kPairs; ++p)
#pragma unroll
      for (int plane = 0; plane < Stage::kPlanesOut; ++plane)
        if (cells.has(p))
          o.out[((d * tiling.rows + cells.n(p)) * Stage::kPlanesOut + plane) * tiling.out_plane + cells.j(p)] =
              Math::operand(out[p][plane]);
    cells.store();
    cells.suspend();
  }
  if (step + 1 == steps + Stage::kExtraSteps) cells.finish(sums);
}

}  // namespace fusedrnn::cuda
