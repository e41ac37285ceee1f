// What Python sees: fusedrnn._C.
#include <ATen/autocast_mode.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/utils/pybind.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../cuda/plan.h"
#include "cuda.h"
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

// Tier, groups, blocks, row tiles, replicas and shared bytes of the plan for a layer of T, N, H, P and D on a device of
// so many multiprocessors, bytes of shared memory and compute capability; for tests.
auto layer_plan(const std::string& cell, bool backward, std::array<int64_t, 5> sizes, int value_bytes,
                std::array<int, 3> gpu, const std::string& forced) {
  auto [T, N, H, P, D] = sizes;
  Job job{backward, find_cell(cell).traits, {T, N, T * N, 0, H, P, static_cast<int>(D)}, value_bytes};
  auto [multiprocessors, shared_bytes, capability] = gpu;
  Device device{multiprocessors, shared_bytes, capability};
  Plan p = forced.empty() ? make_plan(job, device) : make_forced_plan(job, device, forced);
  return std::make_tuple(kTierNames[static_cast<int>(p.tier)], p.groups, p.blocks, p.row_tiles, p.replicas,
                         p.shared_bytes);
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
#else
  m.attr("cuda_version") = pybind11::none();
#endif
  m.def("cpu_capability", &cpu_capability, "The instruction set in use: DEFAULT, AVX2, AVX512 or AVX512_BF16.");
  m.def("cell_traits", &traits_of_cell);
  m.def("empty_cache", &empty_cache, Release());
  m.def("plan", &layer_plan);
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
