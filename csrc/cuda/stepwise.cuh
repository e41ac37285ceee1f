// Tier stepwise: one kernel launch a step, or two with a projection. The recurrent product and the cell are fused, so
// that pre-activations never leave the multiprocessor; weights stream through shared memory.
#pragma once

#include "operands.cuh"

namespace fusedrnn::cuda {

template <class Stage, class Math, int N>
struct StepShared {
  using Operand = typename Math::Operand;
  using Sum = typename Math::Sum;
  static constexpr int kChunk = 256 / sizeof(Operand);  // depth that is in shared memory at a time, twice
  static constexpr int kLd = static_cast<int>(padded_row(kChunk, sizeof(Operand)));

  Operand *weights, *panel;  // two chunks of each
  Sum* sums;                 // reuses the chunks' memory after the last product

  static constexpr int kPanelChunk = N * kTileRows * kLd;

  FUSEDRNN_FN static int weight_chunk(const Tiling& tiling) { return Stage::kTiles * tiling.units() * kLd; }
  FUSEDRNN_FN size_t carve(unsigned char* base, const Tiling& tiling) {
    const size_t chunks = 2 * (weight_chunk(tiling) + kPanelChunk);
    const size_t partial = PartialSums<Stage::kTiles, N, Sum>::count(tiling.groups) * sizeof(Sum) / sizeof(Operand);
    device::Carver carver(base);
    weights = carver.take<Operand>(chunks > partial ? chunks : partial);
    panel = weights + 2 * weight_chunk(tiling);
    sums = reinterpret_cast<Sum*>(weights);
    return carver.bytes();
  }
};

// Block x of units, tile y of rows, direction z. With one tile of sums, registers suffice for two blocks at once.
template <class Stage, class Math, int N, class T>
__global__ void __launch_bounds__(kThreads, Stage::kTiles == 1 ? 2 : 1)
    step_kernel(Args<T> a, Tiling tiling, Operands<Math> o, int64_t step) {
  using Operand = typename Math::Operand;
  using Sum = typename Math::Sum;
  using Memory = StepShared<Stage, Math, N>;
  constexpr int M = Stage::kTiles, kRows = N * kTileRows, kPairs = kStepGroups * kGroup * kRows / kThreads;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, d = blockIdx.z;
  const int64_t first_row = int64_t{blockIdx.y} * kRows, first_unit = int64_t{blockIdx.x} * tiling.units();
  const int64_t width = Stage::width(a.p.shape), block = int64_t{d} * tiling.blocks + blockIdx.x;
  const int weight_rows = M * tiling.units(), weight_chunk = Memory::weight_chunk(tiling);
  const Operand* weights = o.weights + block * weight_rows * tiling.depth;
  const Operand* in = o.in + (d * tiling.rows + first_row) * tiling.depth;
  const StepIterator<T> it(a.p, d, Stage::kBackward);
  const Steps s = it.steps(step);

  Memory shared;
  shared.carve(device::shared_memory(), tiling);
  auto chunk_depth = [&](int chunk) {
    const int left = tiling.depth - chunk * Memory::kChunk;
    return left < Memory::kChunk ? left : Memory::kChunk;
  };
  auto fetch = [&](int chunk) {
    const int k = chunk * Memory::kChunk, depth = chunk_depth(chunk);
    copy_rows(shared.weights + (chunk & 1) * weight_chunk, Memory::kLd, weights + k, tiling.depth, weight_rows, depth);
    copy_rows(shared.panel + (chunk & 1) * Memory::kPanelChunk, Memory::kLd, in + k, tiling.depth, kRows, depth);
    device::copy_async_commit();
  };
  fetch(0);

  const PartialSums<M, N, Sum> partial{shared.sums, tiling.groups};
  typename Stage::Carry carry[kPairs];
  typename Stage::Inputs inputs[kPairs];
  auto each = [&](auto&& f) { each_pair<kPairs>(partial, first_row, first_unit, a.p.shape.rows, width, f); };
  each([&](int p, int, int64_t n, int64_t j, bool real) {
    if (!real) return;
    carry[p] = step ? Stage::Carry::load(a, it.state(n, width, j)) : Stage::start(a, it, n, j);
    Stage::read(a, it, s, n, j, &inputs[p]);
  });

  const int parts = splits(tiling.groups), split = warp % parts, group = warp / parts;
  Sum part[M][N][4] = {};
  for (int chunk = 0, chunks = (tiling.depth + Memory::kChunk - 1) / Memory::kChunk; chunk < chunks; ++chunk) {
    fetch(chunk + 1);              // after the last chunk an empty group
    device::copy_async_wait<1>();  // orders: this thread's copies of this chunk, before the barrier
    __syncthreads();               // orders: all copies of this chunk, before the product
    const int depth = chunk_depth(chunk);
    const Operand* of_group = shared.weights + (chunk & 1) * weight_chunk + group * M * kGroup * Memory::kLd;
    for (int k = split * Math::kDepth; k < depth; k += parts * Math::kDepth) {
      typename Math::template Weights<M> piece;
      piece.load(of_group + k, kGroup * Memory::kLd, Memory::kLd, lane);
      Math::multiply(part, piece, shared.panel + (chunk & 1) * Memory::kPanelChunk + k, Memory::kLd, lane);
    }
    __syncthreads();  // orders: the product, before the chunk after the next, or the sums, take its place
  }
  partial.put(split, group, part, lane);
  __syncthreads();  // orders: all parts, before they are summed

  each([&](int p, int i, int64_t n, int64_t j, bool real) {
    Arithmetic<T> out[Stage::kPlanesOut] = {};
    if (real) {
      Sum sums[M];
      partial.take(i, o.bias + block * weight_rows, sums);
      Stage::step(a, it, step, s, n, j, inputs[p], sums, &carry[p], out);
      carry[p].store(a, it.state(n, width, j));
    }
    Operand* to = o.out + (d * tiling.rows + n) * Stage::kPlanesOut * tiling.out_plane + j;
#pragma unroll
    for (int plane = 0; plane < Stage::kPlanesOut; ++plane) to[plane * tiling.out_plane] = Math::operand(out[plane]);
  });
}

}  // namespace fusedrnn::cuda
