// The drivers: lay out scratch memory, launch. One source file a storage type instantiates them.
#pragma once

#include <array>

#include "../cells.h"
#include "backward.cuh"
#include "forward.cuh"
#include "resident.cuh"
#include "stepwise.cuh"

namespace fusedrnn::cuda {

// Scratch memory of the device, laid out twice: a dry run for its size, then for the pointers.
class Scratch {
 public:
  explicit Scratch(char* base = nullptr) : base_(base) {}

  template <class E>
  E* take(int64_t count) {
    constexpr int64_t kAlignment = 256;
    char* array = base_ + bytes_;
    bytes_ += ceil_div(count * static_cast<int64_t>(sizeof(E)), kAlignment) * kAlignment;
    return base_ && count ? reinterpret_cast<E*>(array) : nullptr;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

template <class Stage>
Tiling make_tiling(const Shape& shape, const Plan& plan, int64_t plane) {
  Tiling tiling;
  tiling.groups = plan.groups;
  tiling.blocks = plan.blocks;
  tiling.plane = static_cast<int>(plane);
  tiling.depth = static_cast<int>(Stage::kPlanesIn * plane);
  tiling.out_plane = plan.blocks * plan.groups * kGroup;
  tiling.rows = int64_t{plan.replicas} * plan.row_tiles * kTileRows;
  return tiling;
}

// One stage with its operands, ready to be launched.
template <class Stage, class Math, class T>
struct Launcher {
  using Operand = typename Math::Operand;

  Tiling tiling;
  Plan plan;
  int directions;
  device::Stream stream;
  bool plain = false;  // see Args
  Operands<Math> operands{};

  void take(Scratch& scratch) {
    const int64_t rows = int64_t{directions} * tiling.out_plane * Stage::kTiles;
    operands.weights = scratch.take<Operand>(rows * tiling.depth);
    operands.bias = scratch.take<typename Math::Sum>(rows);
  }
  int64_t panel_in() const { return directions * tiling.rows * tiling.depth; }
  int64_t panel_out() const { return directions * tiling.rows * Stage::kPlanesOut * tiling.out_plane; }

  device::Launch grid(size_t shared_bytes) const {
    device::Launch launch;
    launch.grid = dim3(tiling.blocks, plan.replicas, directions);
    launch.block = dim3(kThreads);
    launch.shared_bytes = shared_bytes;
    launch.stream = stream;
    return launch;
  }

  device::Error prepare(const Args<T>& a, bool first_panel, uint32_t* counters, int counter_count) const {
    constexpr int64_t kMostBlocks = 1024;
    const int64_t blocks = int64_t{directions} * tiling.out_plane / kGroup * Stage::kTiles;  // a tile of weights each
    device::Launch launch = grid(0);
    launch.grid = dim3(static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks));
    return device::launch(launch, &prepare_kernel<Stage, Math, T>, a, tiling, operands, first_panel, counters,
                          counter_count);
  }

  device::Error step(const Args<T>& a, int64_t i, Operand* in, Operand* out) const {
    constexpr int N = step_tiles(sizeof(T));
    Operands<Math> o = operands;
    o.in = in, o.out = out;
    device::Launch launch = grid(StepShared<Stage, Math, N>().carve(nullptr, tiling));
    return device::launch(launch, &step_kernel<Stage, Math, N, T>, a, tiling, o, i);
  }

  device::Error resident(const Args<T>& a, uint32_t* counters) const {
    return with_resident([&](auto kernel, const device::Launch& launch) {
      return device::launch(launch, kernel, a, plan.tier, tiling, operands, counters);
    });
  }

  // Can the device run all blocks at once that wait for each other?
  device::Error ask_for_room(bool* room) const {
    *room = true;
    if (plan.tier != Tier::kGrid && plan.tier != Tier::kCluster) return device::kSuccess;
    return with_resident([&](auto kernel, const device::Launch& launch) {
      int most = 0;
      const bool cluster = launch.cluster > 1;
      const device::Error error =
          cluster ? device::resident_clusters(launch, kernel, &most) : device::resident_blocks(launch, kernel, &most);
      *room = cluster ? most > 0 : most >= int64_t{plan.blocks} * plan.replicas * directions;
      return error;
    });
  }

 private:
  // Calls f(kernel, launch) with the resident kernel of the plan. What is compiled: for tensor cores all ways to split
  // a product of one tile of rows among the warps, and plain kernels beside those with options. For the rest, and for
  // many rows, where four warps keep the tensor cores busy, as few as do.
  template <class F>
  device::Error with_resident(F&& f) const {
    if constexpr (has_wide_tiles(sizeof(T)))
      if (plan.row_tiles == kWideTiles)
        return with<kWideTiles, splits(most_groups(sizeof(T), kWideTiles) / kWideTiles)>(f);
    if (plan.groups == 1) return with<1, kWarps>(f);
    if constexpr (Math::kTensorCores) {
      if (plan.groups <= 2) return with<1, splits(2)>(f);
      if (plan.groups <= 4) return with<1, splits(4)>(f);
    }
    return with<1, splits(most_groups(sizeof(T), 1))>(f);
  }
  template <int N, int kSplits, class F>
  device::Error with(F&& f) const {
    device::Launch launch = grid(Shared<Stage, Math, N, kSplits>().carve(nullptr, tiling, plan.tier));
    launch.cooperative = plan.tier == Tier::kGrid;
    launch.cluster = plan.tier == Tier::kCluster ? plan.blocks : 1;
    if constexpr (Math::kTensorCores)
      if (plain) return f(&resident_kernel<Stage, Math, N, kSplits, true, T>, launch);
    return f(&resident_kernel<Stage, Math, N, kSplits, false, T>, launch);
  }
};

// Scratch memory that the stages of a layer share.
template <class Math, class T>
struct Common {
  typename Math::Operand* panel[2];
  uint32_t* counters;

  void take(Scratch& scratch, Args<T>& a, int64_t panel_size, int64_t counter_count) {
    using S = Arithmetic<T>;
    const Shape& s = a.p.shape;
    for (auto& p : panel) p = scratch.take<typename Math::Operand>(panel_size);
    counters = scratch.take<uint32_t>(counter_count);
    for (int i = 0; i < kMaxStates; ++i) {
      const int64_t size = s.directions * s.rows * s.width(i);
      a.carry[i] = scratch.take<S>(counter_count || !a.p.states[i].initial ? 0 : size);
      a.dresets[i] = scratch.take<S>(a.g.states[i].reset ? size : 0);
    }
  }
};

// A layer whose step is one stage.
template <class Stage, class Math, class T>
int run_one(Args<T> a, const CudaRun& run) {
  const Shape& s = a.p.shape;
  const Plan& plan = run.plan;
  const bool stepwise = plan.tier == Tier::kStepwise;
  const int counter_count = stepwise ? 0 : s.directions * plan.replicas * kCounterStride;
  const int64_t plane = int64_t{plan.blocks} * plan.groups * kGroup;
  Launcher<Stage, Math, T> stage{make_tiling<Stage>(s, plan, plane), plan, s.directions,
                                 static_cast<device::Stream>(run.stream), a.plain()};
  bool room;
  device::Error error = stage.ask_for_room(&room);
  if (error != device::kSuccess || !room) return error != device::kSuccess ? error : kNoRoom;
  Common<Math, T> common{};
  auto lay_out = [&](Scratch scratch) {
    stage.take(scratch);
    common.take(scratch, a, stage.panel_in(), counter_count);
    return scratch.bytes();
  };
  lay_out(Scratch(static_cast<char*>(run.allocate(lay_out(Scratch())))));
  stage.operands.in = common.panel[0], stage.operands.out = common.panel[1];
  error = stage.prepare(a, true, common.counters, counter_count);
  if (!stepwise) return error == device::kSuccess ? stage.resident(a, common.counters) : error;
  for (int64_t i = 0; error == device::kSuccess && i < s.steps + Stage::kExtraSteps; ++i)
    error = stage.step(a, i, common.panel[i & 1], common.panel[(i + 1) & 1]);
  return error;
}

// A layer whose step is two stages, one with units of width H, one of width P. Each hands its panel to the other.
template <class First, class Second, class Math, class T>
int run_two(Args<T> a, const CudaRun& run, const Job& job) {
  const Shape& s = a.p.shape;
  auto launcher = [&](auto stage, const Plan& other) {
    using Stage = decltype(stage);
    Plan plan = planning::step_plan(job, Stage::width(s));
    return Launcher<Stage, Math, T>{make_tiling<Stage>(s, plan, int64_t{other.blocks} * other.groups * kGroup), plan,
                                    s.directions, static_cast<device::Stream>(run.stream)};
  };
  auto first = launcher(First{}, planning::step_plan(job, Second::width(s)));
  auto second = launcher(Second{}, planning::step_plan(job, First::width(s)));
  Common<Math, T> common{};
  auto lay_out = [&](Scratch scratch) {
    first.take(scratch), second.take(scratch);
    common.take(scratch, a, first.panel_in() > second.panel_in() ? first.panel_in() : second.panel_in(), 0);
    return scratch.bytes();
  };
  lay_out(Scratch(static_cast<char*>(run.allocate(lay_out(Scratch())))));
  first.operands.in = common.panel[0];
  device::Error error = first.prepare(a, true, nullptr, 0);
  if (error == device::kSuccess) error = second.prepare(a, false, nullptr, 0);
  for (int64_t i = 0; error == device::kSuccess && i < s.steps + First::kExtraSteps; ++i) {
    error = first.step(a, i, common.panel[0], common.panel[1]);
    if (error == device::kSuccess) error = second.step(a, i, common.panel[1], common.panel[0]);
  }
  return error;
}

// Calls f(math): how products of T are made.
template <class T, class F>
auto visit_math(bool tf32, F&& f) {
  if constexpr (sizeof(T) == 2)
    return f(TensorCores<T>{});
  else if constexpr (sizeof(T) == 8)
    return f(MultiplyAdd<T>{});
  else
    return tf32 ? f(TensorCores<T>{}) : f(MultiplyAdd<T>{});
}

// Stages with a projection are compiled for cells that can have one: a cell that reads h itself wants it as wide as its
// units are, and a layer of one state and a projection is not worth the time of compiling it.
template <class Cell>
constexpr bool can_project = Cell::kStates > 1 && !Cell::kReadsH;

// The stages of a layer: one, or two with a projection.
template <class Cell, class T>
struct ForwardStages {
  using Only = CellForward<Cell, T, false>;
  using First = CellForward<Cell, T, true>;
  using Second = ProjectForward<T>;
};
template <class Cell, class T>
struct BackwardStages {
  using Only = CellBackward<Cell, T, false>;
  using First = ProjectBackward<Cell, T>;
  using Second = CellBackward<Cell, T, true>;
};

template <template <class, class> class Stages, class Cell, class T>
int run_layer(const Args<T>& a, const CudaRun& run) {
  if (a.p.shape.rows == 0) return device::kSuccess;
  return visit_math<T>(run.tf32, [&](auto math) {
    using Math = decltype(math);
    using Of = Stages<Cell, T>;
    if constexpr (can_project<Cell>)
      if (a.p.weights[0].w_hr)
        return run_two<typename Of::First, typename Of::Second, Math>(
            a, run, {Of::First::kBackward, traits_of<Cell>(), a.p.shape, sizeof(T)});
    return run_one<typename Of::Only, Math>(a, run);
  });
}

template <class Cell, class T>
int scan_forward(const ScanParams<T>& params, const CudaRun& run) {
  Args<T> a{};
  a.p = params;
  return run_layer<ForwardStages, Cell>(a, run);
}

template <class Cell, class T>
int scan_backward(const ScanParams<T>& params, const ScanGrads<T>& grads, const CudaRun& run) {
  Args<T> a{};
  a.p = params;
  a.g = grads;
  return run_layer<BackwardStages, Cell>(a, run);
}

}  // namespace fusedrnn::cuda

namespace fusedrnn {

template <class Cell, class T>
CudaDriver<T> cuda_driver() {
  return {cuda::scan_forward<Cell, T>, cuda::scan_backward<Cell, T>};
}

template <class T, class... Cells>
auto instantiate(CellList<Cells...>) {
  return std::array{&cuda_driver<Cells, T>...};
}

}  // namespace fusedrnn
