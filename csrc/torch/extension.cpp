// What Python sees: fusedrnn._C.
#include <ATen/autocast_mode.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/utils/pybind.h>

#include <array>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cuda.h"
#include "cudnn.h"
#include "memory.h"
#include "packed_layers.h"
#include "plain.h"
#include "python.h"
#include "sums.h"

namespace {

using at::Tensor;
using namespace fusedrnn;
pybind11::dict traits_of_cell(const std::string& cell) {
  using namespace pybind11::literals;
  const CellTraits& traits = find_cell(cell).traits;
  return pybind11::dict("gates"_a = traits.gates, "recurrent"_a = traits.recurrent, "states"_a = traits.states,
                        "vectors"_a = traits.vectors, "inputs"_a = traits.inputs, "saved"_a = traits.saved,
                        "grads"_a = traits.grads);
}

// Multiprocessors, bytes of shared memory of a block, compute capability, and clusters of each size if it was asked.
Device device_of(const std::vector<int>& gpu) {
  Device device{gpu.at(0), gpu.at(1), gpu.at(2)};
  for (size_t i = 3; i < gpu.size(); ++i) device.clusters[i - 3] = gpu[i];
  return device;
}

// A pass over a layer of T, N, H, P and D on such a device; for tests.
struct PlannedPass {
  Job job;
  Device device;

  PlannedPass(const std::string& cell, bool backward, std::array<int64_t, 5> sizes, int value_bytes, bool tf32,
              const std::vector<int>& gpu)
      : device(device_of(gpu)) {
    auto [T, N, H, P, D] = sizes;
    job = {backward, find_cell(cell).traits, {T, N, T * N, 0, H, P, static_cast<int>(D)}, value_bytes, tf32};
  }

  // Tier, groups, blocks, row tiles, replicas and shared bytes.
  auto plan(const std::string& forced) const {
    Plan p = forced.empty() ? make_plan(job, device) : make_forced_plan(job, device, forced);
    return std::make_tuple(kTierNames[static_cast<int>(p.tier)], p.groups, p.blocks, p.row_tiles, p.replicas,
                           p.shared_bytes);
  }
  // Microseconds by tier, of those that the device can hold.
  std::map<std::string, double> estimates() const {
    std::map<std::string, double> found;
    Plan plan{};
    for (Tier tier : kTiers)
      if (planning::choose(job, device, tier, &plan))
        found[kTierNames[static_cast<int>(tier)]] = planning::estimated_us(plan, job, device);
    return found;
  }
  // The tiers that are tried where the launches of the others fail.
  std::vector<std::string> tried(const std::string& forced) const {
    std::vector<std::string> tiers;
    Plan plan{};
    run_planned(job, device, forced, &plan, [&](const Plan& p) {
      tiers.emplace_back(kTierNames[static_cast<int>(p.tier)]);
      return kNoRoom;
    });
    return tiers;
  }
};

// Microseconds of the kernels and of cuDNN: layers of a cell, H, P, layers and D; called with T, N, I, packed and
// training; bytes of a value, float16 and TF32; a GPU as above.
auto compare(const std::tuple<std::string, int64_t, int64_t, int, int>& layers,
             const std::tuple<int64_t, int64_t, int64_t, bool, bool>& call, const std::tuple<int, bool, bool>& kind,
             const std::vector<int>& gpu) {
  auto [cell, H, P, L, D] = layers;
  auto [T, N, I, packed, training] = call;
  auto [bytes, float16, tf32] = kind;
  const Shape shape{T, N, T * N, I, H, P, D};
  const Estimates found =
      compare_with_cudnn({find_cell(cell).traits, shape, L, bytes, float16, tf32, packed, training}, device_of(gpu));
  return std::make_pair(found.ours, found.cudnn);
}

// The gradients of x and of the weights, for tests: of a CUDA kernel's results, wherever they were made.
std::vector<Tensor> sums_of(pybind11::handle inputs, const std::optional<Tensor>& y,
                            const std::optional<Tensor>& hidden, const Tensor& dgates,
                            const std::optional<Tensor>& h_prev, const std::optional<Tensor>& dh_steps) {
  ScanInputs in = inputs_of(inputs), made;
  made.x = at::empty_like(in.x);
  for (auto kind : kWeightKinds)
    for (const Tensor& w : in.*kind) (made.*kind).push_back(at::empty_like(w));
  auto or_none = [](const std::optional<Tensor>& t) { return t.value_or(Tensor()); };
  ScanOutputs out{{or_none(y)}, {}, {}, or_none(hidden)};
  sum_over_steps(in, out, {dgates, or_none(h_prev), or_none(dh_steps)}, &made);
  return made.differentiable();
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using Release = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.attr("torch_version") = FUSEDRNN_TORCH_VERSION;
#ifdef FUSEDRNN_WITH_CUDA
  m.attr("cuda_version") = CUDART_VERSION;
  m.attr("cuda_archs") = FUSEDRNN_CUDA_ARCHS;
  m.def("gpu", [](int index) {
    const Device device = gpu(index);
    std::vector<int> numbers{device.multiprocessors, device.shared_bytes, device.capability};
    numbers.insert(numbers.end(), device.clusters, device.clusters + kClusterSizes);
    return numbers;
  });
#else
  m.attr("cuda_version") = pybind11::none();
#endif
  m.def("cpu_capability", &cpu_capability, "The instruction set in use: DEFAULT, AVX2, AVX512 or AVX512_BF16.");
  m.def("cell_traits", &traits_of_cell);
  m.def("empty_cache", &empty_cache, Release());
  pybind11::class_<PlannedPass>(m, "PlannedPass")
      .def(pybind11::init<const std::string&, bool, std::array<int64_t, 5>, int, bool, const std::vector<int>&>())
      .def("plan", &PlannedPass::plan)
      .def("estimates", &PlannedPass::estimates)
      .def("tried", &PlannedPass::tried);
  m.def("compare_with_cudnn", &compare);
  m.def("is_watched", &is_watched);
  m.def("is_dispatched", [](const Tensor& t) { return is_dispatched(t); });
  m.def("cached_cast",
        [](const Tensor& t, at::ScalarType dtype) { return at::autocast::cached_cast(dtype, t, t.device().type()); });
  m.def("scan", pybind11::overload_cast<const std::string&, bool, bool, pybind11::handle>(&scan));
  m.def("scan_layers", pybind11::overload_cast<const std::string&, pybind11::handle>(&scan_layers));
  m.def("run_packed", pybind11::overload_cast<const std::string&, int64_t, bool, bool, pybind11::handle,
                                              pybind11::handle, pybind11::handle>(&run_packed));
  pybind11::class_<Stream>(m, "Stream")
      .def(pybind11::init(
          [](const std::string& cell, int64_t layers, bool projects, const std::vector<Tensor>& weights, int64_t rows,
             const std::vector<double>& zones) { return Stream({cell, layers, projects, weights}, rows, zones); }))
      .def("step", &Stream::step, Release())
      .def("states", &Stream::states)
      .def("set_states", &Stream::set_states);
  m.def("set_gradients", pybind11::overload_cast<pybind11::object>(&set_gradients));
  m.def("sum_over_steps", &sums_of);
}
