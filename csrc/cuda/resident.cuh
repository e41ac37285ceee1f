// Tiers block, cluster and grid: one persistent kernel takes all steps, with its weights in shared memory.
#pragma once

#include "exchange.cuh"

namespace fusedrnn::cuda {

template <class Stage, class Math, int N>
struct Shared {  // of a block
  using Operand = typename Math::Operand;
  using Sum = typename Math::Sum;

  Operand *weights, *panel, *stage;
  Sum *bias, *sums;  // sums null: they reuse the panel's memory
  uint64_t* barriers;
  int ld, panel_size;

  FUSEDRNN_FN size_t carve(unsigned char* base, const Tiling& tiling, Tier tier) {
    const bool cluster = tier == Tier::kCluster, in_panel = sums_in_panel(tier, N);
    const int units = tiling.units(), rows = N * kTileRows;
    const size_t sum_count = PartialSums<Stage::kTiles, N, Sum>::count(tiling.groups);
    device::Carver carver(base);
    ld = static_cast<int>(padded_row(tiling.depth, sizeof(Operand)));
    panel_size = rows * ld;
    if (in_panel && sum_count * sizeof(Sum) > panel_size * sizeof(Operand))
      panel_size = static_cast<int>(sum_count * sizeof(Sum) / sizeof(Operand));
    weights = carver.take<Operand>(size_t(Stage::kTiles) * units * ld);
    panel = carver.take<Operand>(size_t(cluster ? 2 : 1) * panel_size);
    sums = carver.take<Sum>(in_panel ? 0 : sum_count);
    if (in_panel) sums = nullptr;
    bias = carver.take<Sum>(Stage::kTiles * units);
    stage = carver.take<Operand>(cluster ? rows * Stage::kPlanesOut * units : 0);
    barriers = carver.take<uint64_t>(cluster ? 2 : 0);
    return carver.bytes();
  }
};

// Block x of replica y in direction z.
template <class Stage, class Math, int N, class T>
__global__ void __launch_bounds__(kThreads, 1)
    resident_kernel(Args<T> a, Tier tier, Tiling tiling, Operands<Math> o, uint32_t* counters) {
  using Operand = typename Math::Operand;
  using Sum = typename Math::Sum;
  constexpr int M = Stage::kTiles, kRows = N * kTileRows, kPairs = kCellsPerThread;
  const Shape& shape = a.p.shape;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, d = blockIdx.z;
  const int64_t first_row = int64_t{blockIdx.y} * kRows, first_unit = int64_t{blockIdx.x} * tiling.units();
  const int64_t width = Stage::width(shape), steps = shape.steps + Stage::kExtraSteps;
  const int64_t panel_at = (d * tiling.rows + first_row) * tiling.depth,
                block = int64_t{d} * tiling.blocks + blockIdx.x;
  const StepIterator<T> it(a.p, d, Stage::kBackward);

  Shared<Stage, Math, N> shared;
  shared.carve(device::shared_memory(), tiling, tier);
  const int ld = shared.ld, weight_rows = M * tiling.units();
  PartialSums<M, N, Sum> partial{shared.sums, tiling.groups};
  Exchange<Operand> exchange{tier,
                             shared.panel,
                             ld,
                             shared.panel_size,
                             kRows,
                             tiling.depth,
                             tiling.plane,
                             static_cast<int>(first_unit),
                             tiling.units(),
                             Stage::kPlanesOut,
                             tiling.blocks,
                             o.in + panel_at,
                             o.out - o.in,
                             counters + (d * gridDim.y + blockIdx.y) * kCounterStride,
                             shared.stage,
                             shared.barriers};

  copy_rows(shared.weights, ld, o.weights + block * weight_rows * tiling.depth, tiling.depth, weight_rows,
            tiling.depth);
  copy_rows(shared.panel, ld, o.in + panel_at, tiling.depth, kRows, tiling.depth);
  device::copy_async_commit();
  for (int i = threadIdx.x; i < weight_rows; i += kThreads) shared.bias[i] = o.bias[block * weight_rows + i];
  device::copy_async_wait<0>();  // orders: this thread's copies of the weights and the first panel, before the barrier
  exchange.open();
  __syncthreads();  // orders: all copies, before the first product

  typename Stage::Carry carry[kPairs];
  auto each = [&](auto&& f) { each_pair<kPairs>(partial, first_row, first_unit, shape.rows, width, f); };
  each([&](int p, int, int64_t n, int64_t j, bool real) {
    if (real) carry[p] = Stage::start(a, it, n, j);
  });

  using Product = Part<Math, M, N>;
  const int parts = splits(tiling.groups), split = warp % parts, group = warp / parts;  // a warp has one group at most
  const bool has_group = group < tiling.groups;
  const Operand* weights = shared.weights + group * M * kGroup * ld;
  const Product product{split * Math::kDepth, parts * Math::kDepth, tiling.depth, kGroup * ld, ld, lane};
  typename Product::Held held;
  if (has_group) product.hold(held, weights);

  for (int64_t step = 0; step < steps; ++step) {
    const Steps s = it.steps(step);
    typename Stage::Inputs inputs[kPairs];
    each([&](int p, int, int64_t n, int64_t j, bool real) {
      if (real) Stage::read(a, it, s, n, j, &inputs[p]);
    });

    Operand* panel = exchange.wait(step);
    Sum part[M][N][4];
    if (has_group) product.multiply(part, held, weights, panel);
    if (!shared.sums) {
      __syncthreads();  // orders: the product, before the sums take the panel's place
      partial.sums = reinterpret_cast<Sum*>(panel);
    }
    if (has_group) partial.put(split, group, part, lane);
    __syncthreads();  // the sums' barrier. orders: all parts, before they are summed; the product, before the next put

    each([&](int p, int i, int64_t n, int64_t j, bool real) {
      Arithmetic<T> out[Stage::kPlanesOut] = {};
      if (real) {
        Sum sums[M];
        partial.take(i, shared.bias, sums);
        Stage::step(a, it, step, s, n, j, inputs[p], sums, &carry[p], out);
      }
      if (step + 1 == steps) return;
#pragma unroll
      for (int plane = 0; plane < Stage::kPlanesOut; ++plane)
        exchange.put(step + 1, plane, partial.row(i), partial.unit(i), Math::operand(out[plane]));
    });
    if (step + 1 < steps) exchange.publish(step + 1);
  }
  exchange.close();
}

}  // namespace fusedrnn::cuda
