// Tiers block, cluster and grid: one persistent kernel takes all steps, with its weights in shared memory.
#pragma once

#include "cells.cuh"
#include "exchange.cuh"

namespace fusedrnn::cuda {

// The products of a block: each warp has its part of one group of units at most, and all of them the sums.
template <class Stage, class Math, int N, int kSplits, bool kPlain, class T>
class Products {
 public:
  using Memory = Shared<Stage, Math, N, kSplits>;
  using Operand = typename Math::Operand;
  using Sum = typename Math::Sum;
  using Block = Cells<Stage, N, kWarps / kSplits, T>;
  static constexpr int M = Stage::kTiles;

  __device__ Products(const Memory& shared, const Tiling& tiling)
      : shared_(shared),
        lane_(device::keep(threadIdx.x % 32)),
        split_(device::keep(threadIdx.x / 32 % kSplits)),
        group_(device::keep(threadIdx.x / 32 / kSplits)),
        has_group_(group_ < tiling.groups),
        weights_(shared.weights + group_ * M * kGroup * shared.ld),
        part_{split_ * Math::kDepth, kSplits * Math::kDepth, tiling.depth, kGroup * shared.ld, shared.ld, lane_},
        held_pieces_(device::keep(part_.held())) {
    if (has_group_) part_.hold(held_, weights_);
  }

  // The sums of the thread's pairs.
  __device__ void multiply(Operand* panel, const Block& cells, Sum (&sums)[Block::kPairs][M]) const {
    Sum part[M][N][4];
    if (has_group_) part_.multiply(part, held_pieces_, held_, weights_, panel);
    typename Memory::Partial partial{shared_.sums};
    if (N > 1 && !shared_.sums) {
      __syncthreads();  // orders: the product, before the sums take the panel's place
      partial.sums = reinterpret_cast<Sum*>(panel);
    }
    if (has_group_) partial.put(split_, group_, part, lane_);
    __syncthreads();  // the sums' barrier. orders: all parts, before they are summed; the product, before the next put
#pragma unroll
    for (int p = 0; p < Block::kPairs; ++p)
      partial.take(cells.layout.row(p), cells.unit(p), shared_.bias, Memory::kBiasRow, sums[p]);
  }

 private:
  using Part = cuda::Part<Math, M, N, Block::kPairs, kPlain>;

  const Memory& shared_;
  const int lane_, split_, group_;
  const bool has_group_;
  const Operand* weights_;
  const Part part_;
  const int held_pieces_;
  typename Part::Held held_;
};

// Block x of replica y in direction z. kPlain: a call without options, see Args.
template <class Stage, class Math, int N, int kSplits, bool kPlain, class T>
__global__ void __launch_bounds__(kThreads, 1)
    resident_kernel(const Args<T> given, Tier which, Tiling sizes, Operands<Math> o, uint32_t* counters) {
  using Products = cuda::Products<Stage, Math, N, kSplits, kPlain, T>;
  using Block = typename Products::Block;
  constexpr int M = Stage::kTiles, kRows = N * kTileRows;
  const Args<T> a = kPlain ? given.without_options() : given;
  const Tier tier = static_cast<Tier>(device::keep(static_cast<int>(which)));
  const Tiling tiling = sizes.kept();
  const int d = blockIdx.z, first_unit = blockIdx.x * tiling.units();
  const int64_t first_row = int64_t{blockIdx.y} * kRows, block = int64_t{d} * tiling.blocks + blockIdx.x;
  typename Math::Operand* first_panel = o.in + (d * tiling.rows + first_row) * tiling.depth;

  typename Products::Memory shared;
  shared.carve(device::shared_memory(), tiling, tier);
  const Exchange<typename Products::Memory, kRows, Stage::kPlanesOut> exchange{
      tier,          shared,       first_panel,  o.out - o.in, counters + (d * gridDim.y + blockIdx.y) * kCounterStride,
      tiling.blocks, tiling.depth, tiling.plane, first_unit,   tiling.units()};
  shared.load(tiling, o, block, first_panel, exchange.panel_row);
  exchange.open();
  __syncthreads();  // orders: all copies, before the first product

  Block cells(a, d, first_row, first_unit, tiling.units());
  cells.start();
  const Products products(shared, tiling);
  const int steps = static_cast<int>(a.p.shape.steps), count = steps + Stage::kExtraSteps;
  const StepIterator<T>& it = cells.iterator();
  typename Math::Sum sums[Block::kPairs][M] = {};
  Steps s = it.steps(0);
  if (steps > 0) cells.read(s);
  cells.enter();
  for (int i = 0; i < count; ++i) {
    const Step after = it.after(s.next);
    products.multiply(exchange.wait(i), cells, sums);
    if (i == steps) break;

    Arithmetic<T> out[Block::kPairs][Stage::kPlanesOut];
    cells.step(sums, out);
    exchange.template put<Math>(i + 1, cells, out);
    if (i + 1 == count) {
      cells.store();
      break;
    }
    exchange.publish(i + 1);
    s = {s.next, after, i + 2 == steps};
    if (i + 1 < steps) cells.read_next(s);
    cells.store();
    cells.enter();
  }
  cells.finish(sums);
  exchange.close();
}

}  // namespace fusedrnn::cuda
