// Which kernel runs a layer, and in which tiles: chosen on the host from sizes alone, within the limits of the device.
//
// Rows of a batch are independent. A replica is a slice of rows in one direction, and takes all its steps without
// synchronising with another. What holds a replica is its tier:
//   block     one thread block holds all weights; nothing is exchanged
//   cluster   a thread-block cluster; states go through distributed shared memory (sm_90 and later)
//   grid      blocks anywhere on the device; states go through L2; all replicas run at once
//   stepwise  no kernel outlives a step; weights are read from L2 each time. Takes every size
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
constexpr int kCellsPerThread = 4;  // (row, unit) pairs whose state a thread of a resident kernel keeps
static_assert(kCellsPerThread * kThreads <= kWarps * kGroup * kTileRows,
              "a warp multiplies one group of units at most");

// Sums of double for wide tiles would take 160 KB of shared memory.
constexpr bool has_wide_tiles(int value_bytes) { return value_bytes < 8; }
constexpr int step_tiles(int value_bytes) { return has_wide_tiles(value_bytes) ? kWideTiles : 1; }

struct Device {
  int multiprocessors;
  int shared_bytes;  // the most one block may have
  int capability;    // 90 for compute capability 9.0
};

struct Job {
  bool backward;
  CellTraits cell;
  Shape shape;
  int value_bytes;  // of a stored value: 2, 4 or 8
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
  int64_t sums = splits(groups) * tiles * groups * rows * (kGroup + 4) * sum_bytes, bias = tiles * units * sum_bytes;
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
  int64_t chunks = 2 * (tiles * units + rows) * (256 + 16);
  int64_t sums = splits(kStepGroups) * tiles * kStepGroups * rows * (kGroup + 4) * sum_bytes;
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

inline bool fits(const Plan& plan, const Device& device) {
  constexpr int kMostReplicas = 65535;  // of a grid's second dimension
  return plan.groups * plan.row_tiles * kGroup * kTileRows <= kCellsPerThread * kThreads &&
         plan.replicas <= kMostReplicas && plan.shared_bytes <= static_cast<size_t>(device.shared_bytes);
}

inline int64_t blocks_in_all(const Plan& plan, const Job& job) {
  return int64_t{plan.blocks} * plan.replicas * job.shape.directions;
}

// Of a tier that keeps the weights in shared memory, the most blocks that may exchange a state.
inline int64_t most_blocks(Tier tier, const Device& device) {
  if (tier == Tier::kBlock) return 1;
  if (tier == Tier::kGrid) return device.multiprocessors;
  return device.capability == 90 ? 16 : 8;  // 16 is more than every device has to take
}

inline bool splits_evenly(Tier tier, int64_t groups, int64_t blocks) {
  if (ceil_div(groups, ceil_div(groups, blocks)) != blocks || (blocks == 1) != (tier == Tier::kBlock)) return false;
  return tier != Tier::kCluster || (blocks & (blocks - 1)) == 0;
}

// The plan of one tier, true if the device can hold it. Among those that it can, more blocks are better while there
// are multiprocessors left for them, and fewer rows are.
inline bool choose(const Job& job, const Device& device, Tier tier, Plan* chosen) {
  const Shape& s = job.shape;
  if (tier == Tier::kStepwise) {
    *chosen = step_plan(job, s.hidden);
    return fits(*chosen, device);
  }
  if (s.projected != s.hidden || (tier == Tier::kCluster && device.capability < 90)) return false;
  bool in_waves = false;
  const int64_t groups = ceil_div(s.hidden, kGroup), most = most_blocks(tier, device);
  for (int row_tiles : {1, kWideTiles}) {
    if (row_tiles > 1 && !has_wide_tiles(job.value_bytes)) break;
    for (int64_t blocks = most < groups ? most : groups; blocks >= 1; --blocks) {
      if (!splits_evenly(tier, groups, blocks)) continue;
      const int block_groups = static_cast<int>(ceil_div(groups, blocks));
      const Plan plan = make(job, tier, block_groups, static_cast<int>(blocks), row_tiles);
      if (!fits(plan, device)) continue;
      if (blocks_in_all(plan, job) <= device.multiprocessors) return *chosen = plan, true;
      // Without room for all of them at once, blocks and clusters of fewer, wider replicas run in waves.
      if (tier != Tier::kGrid) *chosen = plan, in_waves = true;
    }
  }
  return in_waves;
}

}  // namespace planning

// The first tier, from `first` on, that the device can hold.
inline Plan make_plan(const Job& job, const Device& device, Tier first = Tier::kBlock) {
  constexpr int64_t kFewSteps = 4;  // reading the weights into shared memory would take longer than the steps
  if (job.shape.steps < kFewSteps) first = Tier::kStepwise;
  Plan chosen{};
  for (int tier = static_cast<int>(first); tier <= static_cast<int>(Tier::kStepwise); ++tier)
    if (planning::choose(job, device, static_cast<Tier>(tier), &chosen)) return chosen;
  throw std::invalid_argument("fusedrnn: a device with " + std::to_string(device.shared_bytes) +
                              " bytes of shared memory a block cannot run a batch of " +
                              std::to_string(job.shape.rows) + " rows");
}

// The plan of the tier that is named, for tests.
inline Plan make_forced_plan(const Job& job, const Device& device, const std::string& name) {
  for (Tier tier : {Tier::kBlock, Tier::kCluster, Tier::kGrid, Tier::kStepwise}) {
    if (name != kTierNames[static_cast<int>(tier)]) continue;
    Plan chosen{};
    if (!planning::choose(job, device, tier, &chosen))
      throw std::invalid_argument("FUSEDRNN_PLAN=" + name + ": this layer does not fit this device");
    return chosen;
  }
  throw std::invalid_argument("FUSEDRNN_PLAN=" + name + " is none of block, cluster, grid, stepwise");
}

// Makes a plan and calls run(plan), which returns 0 or an error; a plan whose blocks cannot be co-resident is
// replaced by the next tier's, unless its tier was named. Returns the last error, with the plan that it is of.
template <class F>
int run_planned(const Job& job, const Device& device, const std::string& forced, Plan* plan, F&& run) {
  if (!forced.empty()) return run(*plan = make_forced_plan(job, device, forced));
  *plan = make_plan(job, device);
  int error = run(*plan);
  while (error == kNoRoom && plan->tier != Tier::kStepwise) {
    *plan = make_plan(job, device, static_cast<Tier>(static_cast<int>(plan->tier) + 1));
    error = run(*plan);
  }
  return error;
}

}  // namespace fusedrnn
