// Both passes: check, allocate, fill ScanParams, call. No arithmetic.
#include "layer.h"

#include <algorithm>
#include <deque>
#include <utility>

#include "../cpu/parallel.h"
#include "checked_layer.h"
#include "recompute.h"

namespace fusedrnn {

std::vector<Tensor> ScanInputs::differentiable() const {
  std::vector<Tensor> all;
  auto add = [&]<class Field>(const Field& field) {
    if constexpr (std::is_same_v<Field, Tensor>)
      all.push_back(field);
    else
      all.insert(all.end(), field.begin(), field.end());
  };
  differentiable_fields(*this, add);
  return all;
}

namespace {

ScanOutputs empty_outputs(const Layer& layer, bool save, bool sequences) {
  ScanOutputs out;
  for (int k = 0; k < layer.traits.states; ++k) {
    bool wanted = k == 0 || sequences || (save && !layer.one_step);
    out.steps.push_back(wanted ? layer.empty(layer.sequence(k)) : Tensor());
    out.last.push_back(k == 0 && layer.one_step ? out.steps[0] : layer.empty(layer.state(k)));
  }
  if (save && layer.in.x.is_cpu()) out.saved = layer.empty(layer.saved());
  if (save && layer.projects()) out.hidden = layer.empty(layer.hidden());
  return out;
}

template <class T>
auto forward_of(const Layer& layer) {
  const CpuDriver<T>& kernels = driver<CpuDriver<T>>(layer.cell.cpu, layer.traits);
  check(layer.in.packed.empty() || kernels.packed, "no kernels of ", layer.traits.name,
        " for packed weights are loaded");
  return layer.in.packed.empty() ? kernels.forward : kernels.packed;
}

}  // namespace

ScanOutputs scan_forward(const std::string& name, bool save, bool sequences, ScanInputs inputs) {
  Layer layer(name, std::move(inputs));
  ScanOutputs out = empty_outputs(layer, save, sequences);
  const Tensor& x = layer.in.x;
  if (x.is_cuda() && layer.shape.steps == 0)  // no kernel runs: copy the states
    for (size_t k = 0; k < out.last.size(); ++k) out.last[k].copy_(layer.in.initial[k]);
  visit_dtype(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    if constexpr (kWithCuda)
      if (x.is_cuda()) {
        int gates = layer.traits.gates;
        Tensor gates_x = project_input(layer.in, layer.shape, gates, save ? layer.traits.saved : gates);
        if (save) out.saved = gates_x;
        auto p = layer.params<T>(out);
        p.gates_x = pointer<T>(gates_x);
        return run_forward(layer.cell, p, x);
      }
    forward_of<T>(layer)(layer.params<T>(out));
  });
  if (layer.one_step) out.last[0] = Tensor();
  return out;
}

namespace {

// Do layers pay that wait for each other once in a chunk of steps? Not where rows keep as many threads busy. Where
// there are more threads than layers and a step is worth a barrier, units are split instead.
bool pay_side_by_side(const Layer& first, int64_t layers) {
  constexpr int64_t kLeastRows = 192;       // two chunks
  constexpr double kFlopsWorthASync = 3e4;  // as in cpu/steps.h
  const Shape& s = first.shape;
  int64_t threads = max_threads();
  double step = 2.0 * s.rows * first.traits.recurrent * s.hidden * s.projected;
  return first.in.x.is_cpu() && !first.one_step && layers > 1 && s.directions == 1 &&
         s.rows < std::min(threads, layers) && s.packed_rows >= kLeastRows &&
         (layers >= threads || step < kFlopsWorthASync * threads);
}

// Calls run(k, progress of k - 1 or null, progress of k) for k = 0 .. count - 1, each on its thread where there are so
// many.
template <class F>
void run_side_by_side(int64_t count, F&& run) {
  std::vector<Progress> progress(static_cast<size_t>(count));
  team(count, [&](int64_t member, int64_t members) {
    for (int64_t k = member; k < count; k += members) try {
        run(k, k ? &progress[k - 1] : nullptr, &progress[k]);
      } catch (...) {
        for (; k < count; k += members) progress[k].complete(Progress::kDone);
        throw;
      }
  });
}

}  // namespace

std::optional<std::vector<ScanOutputs>> scan_layers(const std::string& name, bool save, std::vector<ScanInputs> inputs,
                                                    const std::function<void()>& begin) {
  auto count = static_cast<int64_t>(inputs.size());
  std::deque<Layer> layers;
  std::vector<ScanOutputs> outputs;
  for (ScanInputs& in : inputs) {
    if (!layers.empty()) in.x = outputs.back().steps[0];
    layers.emplace_back(name, std::move(in));
    if (!pay_side_by_side(layers.back(), count)) return {};
    outputs.push_back(empty_outputs(layers.back(), save, false));
  }
  begin();
  visit_dtype(layers[0].in.x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    run_side_by_side(count, [&](int64_t k, const Progress* ahead, Progress* progress) {
      auto p = layers[k].template params<T>(outputs[k]);
      p.ahead = ahead, p.progress = progress;
      forward_of<T>(layers[k])(p);
    });
  });
  return outputs;
}

namespace {

ScanOutputs take_outputs(const Layer& layer, const ScanOutputs& given) {
  ScanOutputs out;
  for (int k = 0; k < layer.traits.states; ++k) {
    Tensor steps = static_cast<size_t>(k) < given.steps.size() ? given.steps[k] : Tensor();
    check(layer.one_step || steps.defined(), "more than one step needs the states after every step");
    out.steps.push_back(layer.take_if_defined(steps, layer.sequence(k), "a state after every step"));
  }
  out.saved = layer.take(given.saved, layer.saved(), "saved");
  check(!layer.projects() || given.hidden.defined(), "a projection needs hidden");
  out.hidden = layer.take_if_defined(given.hidden, layer.hidden(), "hidden");
  return out;
}

// A layer's backward pass: its tensors, checked, and those for its results.
struct BackwardPass {
  BackwardPass(const std::string& name, const BackwardCall& call)
      : layer(name, call.inputs), out(take_outputs(layer, call.outputs)), wanted(call.wanted) {
    for (int k = 0; k < layer.traits.states; ++k) {
      grads.steps.push_back(layer.take_if_defined(call.grads.steps.at(k), layer.sequence(k), "a gradient of states"));
      grads.last.push_back(layer.take_if_defined(call.grads.last.at(k), layer.state(k), "a gradient of final states"));
    }
    size_t next = 0;
    auto allocate = [&](const Tensor& of, bool always) {
      return wanted.at(next++) || always ? layer.empty(of.sizes()) : Tensor();
    };
    auto allocate_all = [&](std::vector<Tensor>* to, const std::vector<Tensor>& of, bool always) {
      for (const Tensor& t : of) to->push_back(allocate(t, always));
    };
    made.x = allocate(layer.in.x, false);
    allocate_all(&made.initial, layer.in.initial, true);
    for (auto kind : kWeightKinds) allocate_all(&(made.*kind), layer.in.*kind, false);
    allocate_all(&made.reset_states, layer.in.reset_states, true);
    allocate_all(&made.step_inputs, layer.in.step_inputs, false);
  }

  template <class T>
  void run(const Progress* ahead, Progress* progress) {
    auto p = layer.params<T>(out);
    p.ahead = ahead, p.progress = progress;
    ScanGrads<T> g{};
    for (int k = 0; k < layer.traits.states; ++k)
      g.states[k] = {pointer<T>(grads.steps[k]), pointer<T>(grads.last[k]), pointer<T>(made.initial[k]),
                     pointer<T>(made.reset_states, k)};
    if constexpr (kWithCuda)
      if (layer.in.x.is_cuda()) {
        StepSums of_steps = layer.empty_step_sums();
        g.steps = {pointer<T>(of_steps.dgates), pointer<T>(of_steps.h_prev), pointer<T>(of_steps.dh_steps)};
        run_backward(layer.cell, p, g, layer.in.x);
        return sum_over_steps(layer.in, out, of_steps, &made);
      }
    g.dx = pointer<T>(made.x);
    for (int d = 0; d < layer.shape.directions; ++d)
      g.weights[d] = {pointer<T>(made.w_ih, d), pointer<T>(made.w_hh, d), pointer<T>(made.b_ih, d),
                      pointer<T>(made.b_hh, d), pointer<T>(made.w_hr, d), pointer<T>(made.vectors, d)};
    for (size_t e = 0; e < made.step_inputs.size(); ++e)
      g.inputs[e] = {pointer<T>(made.step_inputs, e), p.inputs[e].per_unit};
    driver<CpuDriver<T>>(layer.cell.cpu, layer.traits).backward(p, g);
  }

  std::vector<Tensor> gradients() const {
    std::vector<Tensor> all = made.differentiable();
    for (size_t i = 0; i < all.size(); ++i)
      if (!wanted[i]) all[i] = Tensor();
    return all;
  }

  Layer layer;
  ScanOutputs out;
  std::vector<bool> wanted;
  ScanOutputGrads grads;
  ScanInputs made;  // the differentiable fields: their gradients. Drivers write those of the states in any case
};

}  // namespace

std::vector<Tensor> scan_backward(const std::string& name, const ScanInputs& inputs, ScanOutputs outputs,
                                  const ScanOutputGrads& given, const std::vector<bool>& wanted) {
  check(inputs.packed.empty(), "packed weights are for inference: they have no gradients");
  RnnPrecision precision(inputs.x);
  if (!outputs.saved.defined()) recompute(name, inputs, &outputs);
  BackwardPass pass(name, {inputs, std::move(outputs), given, wanted});
  visit_dtype(pass.layer.in.x.scalar_type(), [&](auto type) { pass.run<decltype(type)>(nullptr, nullptr); });
  return pass.gradients();
}

namespace {

// Side by side, each layer makes its sums over steps on one thread. Is that less than what one layer after the other
// takes, which makes them on all threads?
bool pay_side_by_side(const std::deque<BackwardPass>& passes) {
  constexpr double kFewRows = 2.5;  // what a product with few rows costs, in units of one with many
  double threads = static_cast<double>(max_threads()), longest = 0, all = 0, one_by_one = 0;
  for (const BackwardPass& pass : passes) {
    const Shape& s = pass.layer.shape;
    const CellTraits& cell = pass.layer.traits;
    double recurrent = static_cast<double>(cell.recurrent) * s.projected, steps = kFewRows * recurrent;
    double sums = 2.0 * cell.gates * s.input + recurrent;
    longest = std::max(longest, (steps + sums) * s.hidden);
    all += (steps + sums) * s.hidden;
    one_by_one += (steps / s.rows + sums / threads) * s.hidden;
  }
  return std::max(longest, all / threads) < one_by_one;
}

}  // namespace

std::optional<std::vector<std::vector<Tensor>>> scan_layers_backward(const std::string& name,
                                                                     const std::vector<BackwardCall>& layers) {
  auto count = static_cast<int64_t>(layers.size());
  std::deque<BackwardPass> passes;  // the last layer's is the first
  for (int64_t k = count - 1; k >= 0; --k) {
    BackwardCall call = layers[k];
    if (!passes.empty()) call.grads.steps[0] = passes.back().made.x;
    passes.emplace_back(name, call);
    if (!pay_side_by_side(passes.back().layer, count)) return {};
  }
  if (!pay_side_by_side(passes)) return {};
  visit_dtype(passes[0].layer.in.x.scalar_type(), [&](auto type) {
    run_side_by_side(count, [&](int64_t k, const Progress* ahead, Progress* progress) {
      passes[k].template run<decltype(type)>(ahead, progress);
    });
  });
  std::vector<std::vector<Tensor>> gradients;
  for (auto pass = passes.rbegin(); pass != passes.rend(); ++pass) gradients.push_back(pass->gradients());
  return gradients;
}

}  // namespace fusedrnn
