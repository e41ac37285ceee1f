// Which kernel runs a layer, and in which tiles: chosen on the host from sizes alone, within the limits of the device.
//
// Rows of a batch are independent. A replica is a slice of rows in one direction, and takes all its steps without
// synchronising with another. What holds a replica is its tier:
//   block     one thread block holds all weights; nothing is exchanged
//   cluster   a thread-block cluster; states go through distributed shared memory (sm_90 and later)
//   grid      blocks anywhere on the device; states go through L2; all replicas run at once
//   stepwise  no kernel outlives a step; weights are read from L2 each time. Takes every size
// Of the plans that the device can hold, the fastest by estimate is taken.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "../activations.h"
#include "../scan.h"

namespace fusedrnn {

enum class Tier { kBlock, kCluster, kGrid, kStepwise };
constexpr const char* kTierNames[] = {"block", "cluster", "grid", "stepwise"};

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kGroup = 16;          // units of a group: the rows of a tensor core's tile
constexpr int kTileRows = 8;        // batch rows of a tile: its columns
constexpr int kWideTiles = 4;       // of rows, in the kernels for many rows
constexpr int kStepGroups = 2;      // groups of units of a stepwise block, at most
constexpr int kChunkBytes = 256;    // of a row, that are in shared memory of a stepwise block at a time, twice
constexpr int kCellsPerThread = 4;  // (row, unit) pairs whose state a thread of a resident kernel keeps
// Groups of a resident block times its tiles of rows: half as many where registers suffice for no more.
constexpr int kMostGroups = kCellsPerThread * kThreads / (kGroup * kTileRows);
constexpr int most_groups(int value_bytes, int row_tiles) {
  return value_bytes == 8 || (value_bytes == 4 && row_tiles > 1) ? kMostGroups / 2 : kMostGroups;
}
static_assert(kMostGroups <= kWarps, "a warp multiplies one group of units at most");

// Sums of double for wide tiles would take 160 KB of shared memory.
constexpr bool has_wide_tiles(int value_bytes) { return value_bytes < 8; }
constexpr int step_tiles(int value_bytes) { return has_wide_tiles(value_bytes) ? kWideTiles : 1; }

constexpr int kOldestCapability = 80;  // that the kernels are compiled for
constexpr int kClusterSizes = 5;       // 1, 2, 4, 8 and 16 blocks

struct Device {
  int multiprocessors;
  int shared_bytes;  // the most one block may have
  int capability;    // 90 for compute capability 9.0
  // How many clusters of each size run at once, with all shared memory; the first is 0 if the device was not asked.
  int clusters[kClusterSizes] = {};
};

// Asks the current device for clusters. Returns a cudaError_t; what was not answered by then is 0. In clusters.cu.
int ask_for_clusters(Device* device);

struct Job {
  bool backward;
  CellTraits cell;
  Shape shape;
  int value_bytes;    // of a stored value: 2, 4 or 8
  bool tf32 = false;  // see CudaRun
};

struct Plan {
  Tier tier;
  int groups;           // of units, that a block owns
  int blocks;           // of a replica
  int row_tiles;        // of a replica
  int replicas;         // of a direction
  size_t shared_bytes;  // of a block, at most
};

FUSEDRNN_FN constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Warps that share the depth of a group's product, each taking a part; a power of two.
FUSEDRNN_FN constexpr int splits(int groups) { return groups > 4 ? 1 : groups > 2 ? 2 : groups > 1 ? 4 : 8; }

// Rows of shared memory end in 16 unused bytes, so that 8 of them under each other lie in different banks.
FUSEDRNN_FN constexpr int64_t padded_row(int64_t depth, int value_bytes) { return depth + 16 / value_bytes; }

// Sums of wide tiles take the place of the panel they are made from, where that is not also the next step's panel.
FUSEDRNN_FN constexpr bool sums_in_panel(Tier tier, int row_tiles) { return row_tiles > 1 && tier != Tier::kBlock; }

// Shared memory of a resident kernel's block, at most: what Shared of resident.cuh takes.
inline size_t resident_bytes(const Job& job, Tier tier, int groups, int blocks, int row_tiles) {
  int64_t tiles = job.backward ? 1 : job.cell.gates, planes = job.backward ? job.cell.gates : 1;
  int64_t units = int64_t{kGroup} * groups, rows = kTileRows * row_tiles, bytes = job.value_bytes;
  int64_t row = padded_row(planes * blocks * units, job.value_bytes) * bytes, sum_bytes = bytes > 4 ? bytes : 4;
  int64_t weights = tiles * units * row, panel = rows * row, panels = tier == Tier::kCluster ? 2 : 1;
  int64_t sums = kWarps * tiles * rows * (kGroup + 4) * sum_bytes, bias = tiles * kMostGroups * kGroup * sum_bytes;
  if (sums_in_panel(tier, row_tiles)) panel = panel > sums ? panel : sums, sums = 0;
  int64_t stage = tier == Tier::kCluster ? rows * planes * units * bytes : 0;
  constexpr int64_t kAlignments = 8 * 16;
  return static_cast<size_t>(weights + panels * panel + sums + bias + stage + kAlignments);
}

namespace planning {

inline Plan make(const Job& job, Tier tier, int groups, int blocks, int row_tiles) {
  int replicas = static_cast<int>(ceil_div(job.shape.rows, kTileRows * row_tiles));
  return {tier, groups, blocks, row_tiles, replicas, resident_bytes(job, tier, groups, blocks, row_tiles)};
}

// Shared memory of a stepwise block, at most: what StepShared of stepwise.cuh takes. Sums lie in the place of chunks.
inline size_t step_bytes(int tiles, int value_bytes, int row_tiles) {
  int64_t rows = kTileRows * row_tiles, units = kGroup * kStepGroups, sum_bytes = value_bytes > 4 ? value_bytes : 4;
  int64_t chunks = 2 * (tiles * units + rows) * (kChunkBytes + 16);
  int64_t sums = kWarps * tiles * rows * (kGroup + 4) * sum_bytes;
  constexpr int64_t kAlignments = 4 * 16;
  return static_cast<size_t>((chunks > sums ? chunks : sums) + kAlignments);
}

// Of a product for `width` units: of the cell, or of a projection.
inline Plan step_plan(const Job& job, int64_t width) {
  int64_t groups = ceil_div(width, kGroup);
  Plan plan{};
  plan.tier = Tier::kStepwise;
  plan.groups = static_cast<int>(groups < kStepGroups ? groups : kStepGroups);
  plan.blocks = static_cast<int>(ceil_div(groups, plan.groups));
  plan.row_tiles = step_tiles(job.value_bytes);
  plan.replicas = static_cast<int>(ceil_div(job.shape.rows, kTileRows * plan.row_tiles));
  plan.shared_bytes = step_bytes(job.backward ? 1 : job.cell.gates, job.value_bytes, plan.row_tiles);
  return plan;
}

inline bool fits(const Plan& plan, const Job& job, const Device& device) {
  constexpr int kMostReplicas = 65535;  // of a grid's second dimension
  const bool resident = plan.tier != Tier::kStepwise;
  return (!resident || plan.groups * plan.row_tiles <= most_groups(job.value_bytes, plan.row_tiles)) &&
         plan.replicas <= kMostReplicas && plan.shared_bytes <= static_cast<size_t>(device.shared_bytes);
}

// Clusters of so many blocks that run at once.
inline int64_t clusters_at_once(const Device& device, int64_t blocks) {
  int size = 0;
  while (int64_t{1} << size < blocks) ++size;
  if (device.clusters[0]) return device.clusters[size];
  const bool has_16 = device.capability / 10 == 9 || device.capability / 10 == 10;
  return device.capability < 90 || (blocks > 8 && !has_16) ? 0 : device.multiprocessors / blocks;
}

// Of a tier that keeps the weights in shared memory, the most blocks that may exchange a state.
inline int64_t most_blocks(Tier tier, const Device& device) {
  return tier == Tier::kBlock ? 1 : tier == Tier::kGrid ? device.multiprocessors : 1 << (kClusterSizes - 1);
}

inline bool splits_evenly(Tier tier, int64_t groups, int64_t blocks) {
  if (ceil_div(groups, ceil_div(groups, blocks)) != blocks || (blocks == 1) != (tier == Tier::kBlock)) return false;
  return tier != Tier::kCluster || (blocks & (blocks - 1)) == 0;
}

// How often the device is filled with a plan's replicas, one after the other; 0 if it cannot hold one. No rows: 1.
inline int64_t waves(const Plan& plan, const Job& job, const Device& device) {
  const int64_t replicas = plan.replicas ? int64_t{plan.replicas} * job.shape.directions : 1;
  if (plan.tier == Tier::kStepwise || plan.tier == Tier::kBlock)
    return ceil_div(plan.blocks * replicas, device.multiprocessors);
  if (plan.tier == Tier::kGrid)
    return plan.blocks * replicas <= device.multiprocessors;  // all of them wait for each other
  const int64_t at_once = clusters_at_once(device, plan.blocks);
  return at_once ? ceil_div(replicas, at_once) : 0;
}

// What a step of a resident kernel or of one block of a stepwise one costs, in cycles.
struct StepCost {
  double fixed;    // barriers, and in cluster and grid the way of a state to other blocks
  double pair;     // each (row, unit) pair of a thread, per gate and one more
  double product;  // each product of two tiles by a warp on tensor cores
};

// Estimates, none of them measured: of a step without options, fitted by benchmarks/gpu_cost/fit.py to what make
// gpu-cost counts in the kernels' machine code. It also fits them to measurements.
struct Costs {
  StepCost step[4][2] = {
      {{787, 29, 16}, {673, 17, 32}},    // block: forward, backward
      {{1167, 29, 16}, {1060, 17, 32}},  // cluster
      {{2052, 29, 16}, {1881, 17, 32}},  // grid
      {{8456, 29, 28}, {6522, 17, 75}},  // stepwise
  };
  double exchange = 0;                 // each 16 bytes that a thread of a cluster or grid gets from other blocks, and
  double chunk = 0;                    // each chunk of weights from L2, where the above do not contain them
  double multiply_add[2] = {16, 32};   // products without tensor cores, of float and double, per product with them
  double launch = 2450, start = 6000;  // of a kernel behind another; of a resident one, its weights arranged
  double bytes_per_cycle = 32;         // of weights that a block gets when it starts
  double megahertz = 1750;
};
constexpr Costs kCosts;

// Of one step, or of one block's part of it.
inline double step_cycles(const Plan& plan, const Job& job, const Costs& costs = kCosts) {
  const int64_t gates = job.cell.gates, bytes = job.value_bytes, rows = kTileRows * plan.row_tiles;
  const int64_t depth = (job.backward ? gates : 1) * plan.blocks * plan.groups * kGroup;
  const bool tensor_cores = bytes == 2 || (bytes == 4 && job.tf32), stepwise = plan.tier == Tier::kStepwise;
  const int64_t pieces = ceil_div(depth, (tensor_cores ? 32 : 16) / bytes * splits(plan.groups));
  const double products = static_cast<double>((job.backward ? 1 : gates) * plan.row_tiles * pieces),
               pairs = static_cast<double>(ceil_div(plan.groups * kGroup * rows, kThreads));
  const StepCost& cost = costs.step[static_cast<int>(plan.tier)][job.backward];
  double cycles = cost.fixed + cost.pair * pairs * static_cast<double>(gates + 1);
  cycles += cost.product * products * (tensor_cores ? 1 : costs.multiply_add[bytes == 8]);
  if (stepwise) return cycles + costs.chunk * static_cast<double>(ceil_div(depth * bytes, kChunkBytes));
  const bool alone = plan.tier == Tier::kBlock;
  return alone ? cycles : cycles + costs.exchange * static_cast<double>(rows * depth * bytes) / (16 * kThreads);
}

// Of all steps.
inline double estimated_us(const Plan& plan, const Job& job, const Device& device, const Costs& costs = kCosts) {
  const double in_turn = static_cast<double>(waves(plan, job, device)), steps = static_cast<double>(job.shape.steps);
  const double step = step_cycles(plan, job, costs);
  if (plan.tier == Tier::kStepwise) return steps * (costs.launch + in_turn * step) / costs.megahertz;
  const double weights = static_cast<double>(plan.shared_bytes) / costs.bytes_per_cycle;
  return (costs.start + in_turn * (weights + steps * step)) / costs.megahertz;
}

// The fastest plan of one tier that the device can hold; false if it can hold none.
inline bool choose(const Job& job, const Device& device, Tier tier, Plan* chosen) {
  const Shape& s = job.shape;
  if (tier == Tier::kStepwise) {
    *chosen = step_plan(job, s.hidden);
    return fits(*chosen, job, device);
  }
  if (s.projected != s.hidden) return false;
  double least = 0;
  const int64_t groups = ceil_div(s.hidden, kGroup), most = most_blocks(tier, device);
  for (int row_tiles : {1, kWideTiles}) {
    if (row_tiles > 1 && !has_wide_tiles(job.value_bytes)) break;
    for (int64_t blocks = most < groups ? most : groups; blocks >= 1; --blocks) {
      if (!splits_evenly(tier, groups, blocks)) continue;
      const int block_groups = static_cast<int>(ceil_div(groups, blocks));
      const Plan plan = make(job, tier, block_groups, static_cast<int>(blocks), row_tiles);
      if (!fits(plan, job, device) || !waves(plan, job, device)) continue;
      const double cost = estimated_us(plan, job, device);
      if (least == 0 || cost < least) *chosen = plan, least = cost;
    }
  }
  return least > 0;
}

}  // namespace planning

constexpr Tier kTiers[] = {Tier::kBlock, Tier::kCluster, Tier::kGrid, Tier::kStepwise};

// The fastest plan, of a tier that did not fail: bit number t of `failed` is tier t.
inline Plan make_plan(const Job& job, const Device& device, unsigned failed = 0) {
  Plan fastest{}, plan{};
  double least = 0;
  for (Tier tier : kTiers) {
    if (failed >> static_cast<int>(tier) & 1 || !planning::choose(job, device, tier, &plan)) continue;
    const double cost = planning::estimated_us(plan, job, device);
    if (least == 0 || cost < least) fastest = plan, least = cost;
  }
  if (least > 0) return fastest;
  throw std::invalid_argument("fusedrnn: a device with " + std::to_string(device.shared_bytes) +
                              " bytes of shared memory a block cannot run a batch of " +
                              std::to_string(job.shape.rows) + " rows");
}

// The plan of the tier that is named, for tests.
inline Plan make_forced_plan(const Job& job, const Device& device, const std::string& name) {
  for (Tier tier : kTiers) {
    if (name != kTierNames[static_cast<int>(tier)]) continue;
    Plan chosen{};
    if (!planning::choose(job, device, tier, &chosen))
      throw std::invalid_argument("FUSEDRNN_PLAN=" + name + ": this layer does not fit this device");
    return chosen;
  }
  throw std::invalid_argument("FUSEDRNN_PLAN=" + name + " is none of block, cluster, grid, stepwise");
}

// Makes a plan and calls run(plan), which returns 0 or an error, in which case nothing was launched; then the fastest
// plan of another tier is tried, unless the tier was named. Returns the last error, with the plan that it is of.
template <class F>
int run_planned(const Job& job, const Device& device, const std::string& forced, Plan* plan, F&& run) {
  if (!forced.empty()) return run(*plan = make_forced_plan(job, device, forced));
  int error = 0;
  unsigned failed = 0;
  do {
    *plan = make_plan(job, device, failed);
    error = run(*plan);
    failed |= 1u << static_cast<int>(plan->tier);
  } while (error != 0 && plan->tier != Tier::kStepwise);
  return error;
}

}  // namespace fusedrnn
