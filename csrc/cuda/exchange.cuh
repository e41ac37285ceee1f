// Shared memory of a resident kernel's block, and how the blocks of a replica exchange the operands of the next
// product: three ways, one for each tier, with the same five functions. What is put for a step can be read by all
// blocks once each of them has published it.
#pragma once

#include "operands.cuh"

namespace fusedrnn::cuda {

template <class Stage, class Math, int N, int kSplits>
struct Shared {  // of a block
  using Operand = typename Math::Operand;
  using Sum = typename Math::Sum;
  using Partial = PartialSums<Stage::kTiles, N, kSplits, Sum>;
  static constexpr int kBiasRow = Partial::kGroups * kGroup;  // of a tile

  Operand *weights, *panel, *stage;
  Sum *bias, *sums;  // sums null: they reuse the panel's memory
  uint64_t* barriers;
  int ld, panel_size;

  FUSEDRNN_FN size_t carve(unsigned char* base, const Tiling& tiling, Tier tier) {
    const bool cluster = tier == Tier::kCluster, in_panel = sums_in_panel(tier, N);
    const int units = tiling.units(), rows = N * kTileRows;
    device::Carver carver(base);
    ld = static_cast<int>(padded_row(tiling.depth, sizeof(Operand)));
    panel_size = rows * ld;
    if (in_panel && Partial::kCount * sizeof(Sum) > panel_size * sizeof(Operand))
      panel_size = static_cast<int>(Partial::kCount * sizeof(Sum) / sizeof(Operand));
    weights = carver.take<Operand>(size_t(Stage::kTiles) * units * ld);
    panel = carver.take<Operand>(size_t(cluster ? 2 : 1) * panel_size);
    sums = carver.take<Sum>(in_panel ? 0 : Partial::kCount);
    if (in_panel) sums = nullptr;
    bias = carver.take<Sum>(Stage::kTiles * kBiasRow);
    stage = carver.take<Operand>(cluster ? rows * Stage::kPlanesOut * units : 0);
    barriers = carver.take<uint64_t>(cluster ? 2 : 0);
    return carver.bytes();
  }

  // The block's weights and bias, and the first panel. depth: in pieces.
  __device__ void load(const Tiling& tiling, const Operands<Math>& o, int64_t block, const Operand* first_panel,
                       const Divisor& depth) const {
    const int units = tiling.units(), rows = Stage::kTiles * units;
    copy_rows(weights, ld, o.weights + block * rows * tiling.depth, tiling.depth, rows, depth);
    copy_rows(panel, ld, first_panel, tiling.depth, N * kTileRows, depth);
    device::copy_async_commit();
    for (int unit = threadIdx.x; unit < units; unit += kThreads)
      for (int tile = 0; tile < Stage::kTiles; ++tile)
        bias[tile * kBiasRow + unit] = o.bias[block * rows + tile * units + unit];
    device::copy_async_wait<0>();  // orders: this thread's copies, before the barrier
  }
};

template <class Memory, int kRows, int kPlanes>
struct Exchange {
  using Operand = typename Memory::Operand;
  static constexpr int kPiece = 16 / sizeof(Operand);

  Tier tier;             // block: put where it is read. grid: through L2. cluster: pushed into each block's memory
  const Memory& shared;  // its panel is [kRows][ld]; in a cluster there are two, by parity of the step
  Operand* global;       // grid: [kRows][depth], and the same again `other` elements further, by parity of the step
  int64_t other;
  uint32_t* counter;         // grid: of the replica, from 0; each block raises it once a step
  int blocks, depth, plane;  // of the replica; of the panel
  int first_unit, units;     // that this block puts, kPlanes planes of them
  Divisor stage_row{units / kPiece}, slice{kRows * kPlanes * (units / kPiece)}, panel_row{depth / kPiece};

  __device__ void open() const {
    if (tier != Tier::kCluster) return;
    if (threadIdx.x == 0) {
      device::mbarrier_init(&shared.barriers[0], 1);
      device::mbarrier_init(&shared.barriers[1], 1);
      device::mbarrier_init_fence();
    }
    sync_cluster();  // orders: the barriers of all blocks, before anybody pushes
  }

  // The panel of step i. That of step 0 has been read from memory.
  __device__ Operand* wait(int i) const {
    if (i == 0 || tier == Tier::kBlock) return shared.panel;
    if (tier == Tier::kCluster) {
      // orders: the bytes of step i from all blocks, before the product. A barrier's first phase is step 1 or 2
      device::mbarrier_wait(&shared.barriers[i & 1], (i - 1) >> 1 & 1);
      return panel(i);
    }
    // orders: what all blocks put for step i, before this block reads it
    if (threadIdx.x == 0) device::wait_for(counter, static_cast<uint32_t>(blocks) * static_cast<uint32_t>(i));
    __syncthreads();  // orders: the wait of thread 0, before the copies of all
    copy_rows(shared.panel, shared.ld, global + (i & 1) * other, depth, kRows, panel_row);
    device::copy_async_commit();
    device::copy_async_wait<0>();  // orders: this thread's copies, before the barrier
    __syncthreads();               // orders: all copies, before the product
    return shared.panel;
  }

  // The sums' barrier stands between the product of a step and what is put after it, so a block's own panel and stage
  // are free then. Other blocks are at most one step behind: they may still read this step's panel, not the next one's.
  // out: of the pairs of a thread.
  template <class Math, class Cells, class S>
  __device__ void put(int i, const Cells& cells, const S (&out)[Cells::kPairs][kPlanes]) const {
    auto put_into = [&](Operand* to, int row_size, int plane_size) {
#pragma unroll
      for (int p = 0; p < Cells::kPairs; ++p)
#pragma unroll
        for (int k = 0; k < kPlanes; ++k)
          if (cells.has(p))
            to[cells.layout.row(p) * row_size + k * plane_size + cells.layout.unit(p)] = Math::operand(out[p][k]);
    };
    if (tier == Tier::kBlock)
      put_into(shared.panel, shared.ld, plane);
    else if (tier == Tier::kCluster)
      put_into(shared.stage, kPlanes * units, units);
    else
      put_into(global + (i & 1) * other + first_unit, depth, plane);
  }

  __device__ void publish(int i) const {
    __syncthreads();  // orders: what all threads put, before the next product, the pushes, or the release of thread 0
    if (tier == Tier::kBlock) return;
    if (tier == Tier::kCluster)
      push(i);
    else if (threadIdx.x == 0)
      device::add_release(counter, 1);
  }

  __device__ void close() const {
    if (tier == Tier::kCluster) sync_cluster();  // orders: all pushes, before any block's shared memory goes
  }

 private:
  __device__ Operand* panel(int i) const { return shared.panel + (i & 1) * shared.panel_size; }

  __device__ static void sync_cluster() {
    device::cluster_arrive();
    device::cluster_wait();
  }

  // The stage goes to all blocks of the cluster, this one included; each counts the bytes that come.
  __device__ void push(int i) const {
    uint64_t* barrier = &shared.barriers[i & 1];
    if (threadIdx.x == 0)
      device::mbarrier_arrive_expect(barrier, static_cast<unsigned>(kRows * depth * sizeof(Operand)));
    for (int p = threadIdx.x; p < blocks * slice.value; p += kThreads) {
      const int block = slice.quotient(p), piece = p - block * slice.value, line = stage_row.quotient(piece);
      Operand* to = panel(i) + line / kPlanes * shared.ld + line % kPlanes * plane + first_unit +
                    (piece - line * stage_row.value) * kPiece;
      device::st_async16(to, barrier, block, device::load_as<uint4>(shared.stage + piece * kPiece));
    }
  }
};

}  // namespace fusedrnn::cuda
