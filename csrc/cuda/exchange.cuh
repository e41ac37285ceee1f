// How the blocks of a replica exchange the operands of the next product: three ways, one for each tier, with the same
// five functions. What is put for a step can be read by all blocks once each of them has published it.
#pragma once

#include "operands.cuh"

namespace fusedrnn::cuda {

template <class Operand>
struct Exchange {
  Tier tier;              // block: put where it is read. grid: through L2. cluster: pushed into each block's memory
  Operand* shared;        // [rows][ld]; in a cluster two of them, by parity of the step
  int ld, panel_size;     // panel_size: from the one to the other
  int rows;               // of the replica
  int depth, plane;       // of the panel
  int first_unit, units;  // that this block puts
  int planes;             // of them
  int blocks;             // of the replica
  Operand* global;        // grid: [rows][depth], and the same again `other` elements further, by parity of the step
  int64_t other;
  uint32_t* counter;   // grid: of the replica, from 0; each block raises it once a step
  Operand* stage;      // cluster: [rows][planes][units]
  uint64_t* barriers;  // cluster: [2], by parity of the step

  __device__ void open() {
    if (tier != Tier::kCluster) return;
    if (threadIdx.x == 0) {
      device::mbarrier_init(&barriers[0], 1);
      device::mbarrier_init(&barriers[1], 1);
      device::mbarrier_init_fence();
    }
    sync_cluster();  // orders: the barriers of all blocks, before anybody pushes
  }

  // The panel of step i. That of step 0 has been read from memory.
  __device__ Operand* wait(int64_t i) {
    if (i == 0 || tier == Tier::kBlock) return shared;
    if (tier == Tier::kCluster) {
      // orders: the bytes of step i from all blocks, before the product. A barrier's first phase is step 1 or 2
      device::mbarrier_wait(&barriers[i & 1], (i - 1) >> 1 & 1);
      return panel(i);
    }
    // orders: what all blocks put for step i, before this block reads it
    if (threadIdx.x == 0) device::wait_for(counter, static_cast<uint32_t>(blocks * i));
    __syncthreads();  // orders: the wait of thread 0, before the copies of all
    copy_rows(shared, ld, global + (i & 1) * other, depth, rows, depth);
    device::copy_async_commit();
    device::copy_async_wait<0>();  // orders: this thread's copies, before the barrier
    __syncthreads();               // orders: all copies, before the product
    return shared;
  }

  // The sums' barrier stands between the product of a step and what is put after it, so a block's own panel and stage
  // are free then. Other blocks are at most one step behind: they may still read this step's panel, not the next one's.
  __device__ void put(int64_t i, int plane_index, int row, int unit, Operand value) {
    const int column = plane_index * plane + first_unit + unit;
    if (tier == Tier::kBlock)
      shared[row * ld + column] = value;
    else if (tier == Tier::kCluster)
      stage[(row * planes + plane_index) * units + unit] = value;
    else
      global[(i & 1) * other + int64_t{row} * depth + column] = value;
  }

  __device__ void publish(int64_t i) {
    __syncthreads();  // orders: what all threads put, before the next product, the pushes, or the release of thread 0
    if (tier == Tier::kGrid && threadIdx.x == 0) device::add_release(counter, 1);
    if (tier == Tier::kCluster) push(i);
  }

  __device__ void close() {
    if (tier == Tier::kCluster) sync_cluster();  // orders: all pushes, before any block's shared memory goes
  }

 private:
  __device__ Operand* panel(int64_t i) { return shared + (i & 1) * panel_size; }

  __device__ void sync_cluster() {
    device::cluster_arrive();
    device::cluster_wait();
  }

  // The stage goes to all blocks of the cluster, this one included; each counts the bytes that come.
  __device__ void push(int64_t i) {
    constexpr int kPiece = 16 / sizeof(Operand);
    const int pieces = units / kPiece, slice = rows * planes * pieces;
    uint64_t* barrier = &barriers[i & 1];
    if (threadIdx.x == 0)
      device::mbarrier_arrive_expect(barrier, static_cast<unsigned>(rows * depth * sizeof(Operand)));
    for (int p = threadIdx.x; p < blocks * slice; p += kThreads) {
      const int block = p / slice, piece = p % pieces, plane_index = p / pieces % planes,
                row = p / pieces / planes % rows;
      Operand* to = panel(i) + row * ld + plane_index * plane + first_unit + piece * kPiece;
      const Operand* from = stage + (row * planes + plane_index) * units + piece * kPiece;
      device::st_async16(to, barrier, block, device::load_as<uint4>(from));
    }
  }
};

}  // namespace fusedrnn::cuda
