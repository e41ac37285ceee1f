// The border between torch and the kernels: check, allocate, fill ScanParams, call. No arithmetic.
#include "layer.h"

#include <ATen/core/DimVector.h>

#include <optional>
#include <utility>

#include "../scan.h"
#include "cuda.h"
#include "memory.h"
#include "packed_layers.h"
#include "plain.h"
#include "recompute.h"
#include "sums.h"

namespace fusedrnn {
namespace {

using at::Tensor;
using Size = at::DimVector;
using std::optional;

template <class... Args>
void check(bool good, const char* what, const Args&... seen) {
  TORCH_CHECK_VALUE(good, "fusedrnn: ", what, seen...);
}

template <class F>
void visit_dtype(at::ScalarType dtype, F&& f) {
  switch (dtype) {
    case at::kFloat:
      return f(float{});
    case at::kDouble:
      return f(double{});
    case at::kBFloat16:
      return f(bfloat16{});
    case at::kHalf:
      return f(float16{});
    default:
      check(false, "dtype must be float32, float64, bfloat16 or float16, got ", dtype);
  }
}

template <class T>
T* pointer(const Tensor& t) {
  return t.defined() ? static_cast<T*>(t.data_ptr()) : nullptr;
}
// Of a list that may be empty.
template <class T>
T* pointer(const std::vector<Tensor>& tensors, size_t i) {
  return i < tensors.size() ? pointer<T>(tensors[i]) : nullptr;
}

template <class Driver, class Drivers>
const Driver& driver(const Drivers& drivers, const CellTraits& cell) {
  const Driver& chosen = std::get<Driver>(drivers);
  check(chosen.forward, "no kernels of ", cell.name, " are loaded for this dtype and device");
  return chosen;
}

// A layer's tensors, dense, of one dtype, with consistent sizes. Owns what ScanParams only points to.
class Layer {
 public:
  Layer(const std::string& name, ScanInputs given) : cell(find_cell(name)), traits(cell.traits), in(std::move(given)) {
    check(in.x.defined() && in.initial.size() == static_cast<size_t>(traits.states) && in.initial[0].defined(),
          traits.name, " needs x and ", traits.states, " initial states, got ", in.initial.size());
    options = in.x.options();
    packed = in.batch_sizes.defined();
    one_step = in.initial[0].dim() == 2 && !packed && !in.lengths.defined() && !in.reset.defined();
    take_sizes();
    take_steps();
    take_weights();
    in.x = dense(in.x, "x");
    take_states(in.initial, "an initial state");
    check_count(in.reset_states, "reset states");
    take_states(in.reset_states, "a reset state");
    take_options();
  }

  bool projects() const { return !in.w_hr.empty(); }
  bool is_per_unit(const Tensor& step_input) const { return step_input.dim() == in.x.dim(); }

  template <class T>
  ScanParams<T> params(const ScanOutputs& out) const {
    ScanParams<T> p{};
    p.shape = shape;
    p.batch = {in.x.is_cuda() ? pointer<int64_t>(device_offsets) : offsets.data(), pointer<int64_t>(in.lengths),
               pointer<bool>(in.reset)};
    for (int d = 0; d < shape.directions; ++d)
      p.weights[d] = {pointer<T>(in.w_ih, d),           pointer<T>(in.w_hh, d), pointer<T>(in.b_ih, d),
                      pointer<T>(in.b_hh, d),           pointer<T>(in.w_hr, d), pointer<T>(in.vectors, d),
                      pointer<const void>(in.packed, d)};
    for (size_t e = 0; e < in.step_inputs.size(); ++e)
      p.inputs[e] = {pointer<const T>(in.step_inputs, e), is_per_unit(in.step_inputs[e])};
    (in.is_projected() ? p.gates_x : p.x) = pointer<T>(in.x);
    p.h_mask = pointer<T>(in.h_mask);
    for (int k = 0; k < traits.states; ++k)
      p.states[k] = {pointer<T>(in.initial, k), pointer<T>(in.reset_states, k), zone(k), pointer<T>(out.steps, k),
                     pointer<T>(out.last, k)};
    p.saved = pointer<T>(out.saved), p.hidden = pointer<T>(out.hidden);
    return p;
  }

  Tensor empty(at::IntArrayRef size) const { return fusedrnn::empty(size, options); }

  // The size of state k, [D, N, width], or [N, width] of one step.
  Size state(int k) const {
    return one_step ? Size{shape.rows, shape.width(k)} : Size{shape.directions, shape.rows, shape.width(k)};
  }
  // The size of its sequence in the layout of x: [T, N, D*width], [R, D*width] if packed, or [N, width] of one step.
  Size sequence(int k) const {
    Size size(in.x.sizes());
    size.back() = shape.directions * shape.width(k);
    return size;
  }
  Size saved() const { return {shape.directions, shape.packed_rows, traits.saved, shape.hidden}; }
  Size hidden() const { return {shape.directions, shape.packed_rows, shape.hidden}; }

  // What the CUDA driver makes of every step. h_prev: only where it is not y of the step before.
  StepSums empty_step_sums() const {
    bool shifted = !packed && !in.lengths.defined() && !in.reset.defined() && !in.h_mask.defined();
    return {empty({shape.directions, shape.packed_rows, traits.grads, shape.hidden}),
            shifted ? Tensor() : empty({shape.directions, shape.packed_rows, shape.projected}),
            projects() ? empty({shape.directions, shape.packed_rows, shape.projected}) : Tensor()};
  }

  // The values of t, contiguous: only where they are in memory, and all of them.
  static Tensor dense(const Tensor& t, const char* name) {
    check(is_plain(t), name, " must be a dense tensor that holds its values itself, got one of ", t.key_set());
    check_memory(t, name);
    return t.contiguous();
  }

  // A tensor as the drivers want it: dense, with this size and this layer's device and dtype.
  Tensor take(const Tensor& t, at::IntArrayRef size, const char* name, optional<at::ScalarType> dtype = {}) const {
    check(t.defined(), name, " is missing");
    at::ScalarType wanted = dtype.value_or(options.dtype().toScalarType());
    check(t.scalar_type() == wanted, name, " must be ", wanted, ", got ", t.scalar_type());
    check(t.device() == options.device(), name, " must be on ", options.device(), ", got ", t.device());
    check(t.sizes() == size, name, " must be ", size, ", got ", t.sizes());
    return dense(t, name);
  }
  Tensor take_if_defined(const Tensor& t, at::IntArrayRef size, const char* name) const {
    return t.defined() ? take(t, size, name) : t;
  }

  const CellDrivers& cell;
  const CellTraits& traits;
  ScanInputs in;
  Shape shape{};
  at::TensorOptions options;
  bool packed, one_step;

 private:
  void take_sizes() {
    const Tensor &x = in.x, &h0 = in.initial[0];
    check(x.is_cpu() || (kWithCuda && x.is_cuda()), "there are compiled kernels for the CPU",
          kWithCuda ? " and CUDA" : "", ", got a tensor on ", x.device());
    check(x.dim() == (packed || one_step ? 2 : 3),
          "x must be [T, N, I], [R, I] with batch_sizes, or [N, I] with h0 [N, P]; got ", x.sizes());
    check(one_step || (h0.dim() == 3 && h0.size(0) >= 1 && h0.size(0) <= 2), "h0 must be [D, N, P] with D 1 or 2, got ",
          h0.sizes());
    shape.directions = one_step ? 1 : static_cast<int>(h0.size(0));
    shape.rows = h0.size(-2);
    shape.projected = h0.size(-1);
    shape.input = in.is_projected() ? 0 : x.size(-1);
  }

  void take_options() {
    if (in.lengths.defined()) in.lengths = take(in.lengths, {shape.rows}, "lengths", at::kLong);
    if (in.reset.defined())
      in.reset = take(dense(in.reset, "reset").flatten(), {shape.packed_rows}, "reset", at::kBool);
    if (in.h_mask.defined()) in.h_mask = take(in.h_mask, state(0), "h_mask");
    check(in.step_inputs.size() == static_cast<size_t>(traits.inputs), traits.name, " needs ", traits.inputs,
          " step inputs, got ", in.step_inputs.size());
    for (Tensor& t : in.step_inputs) {
      Size size(in.x.sizes());
      size.back() = shape.hidden;
      if (t.defined() && !is_per_unit(t)) size.pop_back();
      t = take(t, size, "a step input");
    }
    check_count(in.zones, "zoneout masks");
    for (size_t k = 0; k < in.zones.size(); ++k)
      if (in.zones[k].defined()) in.zones[k] = take_zone(in.zones[k], static_cast<int>(k));
  }

  void check_count(const std::vector<Tensor>& given, const char* what) const {
    check(given.empty() || given.size() == in.initial.size(), "there must be ", in.initial.size(), " ", what,
          " or none, got ", given.size());
  }

  void take_steps() {
    offsets.push_back(0);
    const Tensor& x = in.x;
    if (!packed) {
      check(x.size(-2) == shape.rows, "x has ", x.size(-2), " rows, but h0 has ", shape.rows);
      int64_t steps = one_step ? 1 : x.size(0);
      for (int64_t t = 0; t < steps; ++t) offsets.push_back(offsets.back() + shape.rows);
    } else {
      Tensor sizes = dense(in.batch_sizes, "batch_sizes").to(at::kLong);
      check(sizes.device().is_cpu() && sizes.dim() == 1, "batch_sizes must be 1-D on the CPU");
      int64_t previous = shape.rows;
      for (int64_t t = 0; t < sizes.size(0); ++t) {
        int64_t n = sizes.data_ptr<int64_t>()[t];
        check(n >= 0 && n <= previous, "batch_sizes must start at most at N and never increase; got ", n, " after ",
              previous);
        offsets.push_back(offsets.back() + (previous = n));
      }
      check(offsets.back() == x.size(0), "batch_sizes add up to ", offsets.back(), " rows, but x has ", x.size(0));
    }
    shape.steps = static_cast<int64_t>(offsets.size()) - 1;
    shape.packed_rows = offsets.back();
    if constexpr (kWithCuda)
      if (x.is_cuda() && packed) device_offsets = copy_to_device(offsets, x.device());
  }

  void take_weights() {
    auto take_all = [&](std::vector<Tensor>& given, at::IntArrayRef size, const char* name) {
      check(given.size() == static_cast<size_t>(shape.directions), "there must be one ", name, " a direction, got ",
            given.size(), " for D = ", shape.directions);
      for (Tensor& t : given) t = take(t, size, name);
    };
    shape.hidden = projects() && in.w_hr[0].dim() == 2 ? in.w_hr[0].size(1) : shape.projected;
    int64_t gates = traits.gates * shape.hidden, recurrent = traits.recurrent * shape.hidden;
    int64_t all_gates = shape.directions * gates;
    if (!in.w_hr.empty()) take_all(in.w_hr, {shape.projected, shape.hidden}, "w_hr");
    check(projects() ? traits.states > 1 : shape.projected == shape.hidden,
          "only an LSTM with w_hr has a hidden state of another size; got ", shape.projected, " for hidden size ",
          shape.hidden);
    if (!in.packed.empty()) return take_packed();
    if (!in.is_projected()) take_all(in.w_ih, {gates, shape.input}, "w_ih");
    if (traits.recurrent) take_all(in.w_hh, {recurrent, shape.projected}, "w_hh");
    check(in.is_projected() ? in.b_ih.empty() : !traits.recurrent || in.b_ih.size() == in.b_hh.size(),
          "there must be b_ih and b_hh or neither, and without w_ih no b_ih");
    check(!in.is_projected() || in.x.size(-1) == all_gates, "without w_ih, x must be projected: [.., ", all_gates,
          "]; got ", in.x.sizes());
    if (!in.b_ih.empty()) take_all(in.b_ih, {gates}, "b_ih");
    if (!in.b_hh.empty()) take_all(in.b_hh, {recurrent}, "b_hh");
    if (traits.vectors) take_all(in.vectors, {traits.vectors, shape.hidden}, "vectors");
  }

  void take_packed() {
    bool alone = in.w_ih.empty() && in.w_hh.empty() && in.b_ih.empty() && in.b_hh.empty() && in.vectors.empty();
    check(alone && !in.h_mask.defined(), "packed weights replace all others but w_hr, and take no h_mask");
    check(in.packed.size() == static_cast<size_t>(shape.directions), "there must be one packed block a direction, got ",
          in.packed.size(), " for D = ", shape.directions);
    for (Tensor& t : in.packed) check_packed(t = dense(t, "a packed block"), traits, shape, in.x);
  }

  void take_states(std::vector<Tensor>& states, const char* which) const {
    for (size_t k = 0; k < states.size(); ++k) states[k] = take(states[k], state(static_cast<int>(k)), which);
  }

  // A mask of every step, or one number.
  Tensor take_zone(const Tensor& t, int k) const {
    check(t.dim() || t.is_cpu(), "zoneout of one number must be on the CPU, got ", t.device());
    return t.dim() ? take(t, sequence(k), "a zoneout mask", at::kBool) : dense(t, "zoneout").to(at::kDouble);
  }

  Zone zone(size_t k) const {
    if (k >= in.zones.size() || !in.zones[k].defined()) return {};
    const Tensor& t = in.zones[k];
    return t.dim() ? Zone{pointer<bool>(t), 0} : Zone{nullptr, *t.const_data_ptr<double>()};
  }

  Size offsets;
  Tensor device_offsets;  // on CUDA, of packed input
};

}  // namespace

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
    const CpuDriver<T>& kernels = driver<CpuDriver<T>>(layer.cell.cpu, layer.traits);
    if (layer.in.packed.empty()) return kernels.forward(layer.params<T>(out));
    check(kernels.packed, "no kernels of ", layer.traits.name, " for packed weights are loaded");
    kernels.packed(layer.params<T>(out));
  });
  if (layer.one_step) out.last[0] = Tensor();
  return out;
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

}  // namespace

std::vector<Tensor> scan_backward(const std::string& name, const ScanInputs& inputs, ScanOutputs outputs,
                                  const ScanOutputGrads& given, const std::vector<bool>& wanted) {
  check(inputs.packed.empty(), "packed weights are for inference: they have no gradients");
  RnnPrecision precision(inputs.x);
  if (!outputs.saved.defined()) recompute(name, inputs, &outputs);
  Layer layer(name, inputs);
  const Shape& s = layer.shape;
  int S = layer.traits.states;
  ScanOutputs out = take_outputs(layer, outputs);
  ScanOutputGrads grads;
  for (int k = 0; k < S; ++k) {
    grads.steps.push_back(layer.take_if_defined(given.steps.at(k), layer.sequence(k), "a gradient of states"));
    grads.last.push_back(layer.take_if_defined(given.last.at(k), layer.state(k), "a gradient of final states"));
  }
  ScanInputs made;  // the differentiable fields: their gradients. Drivers write those of the states in any case
  size_t next = 0;
  bool on_cuda = layer.in.x.is_cuda();
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
  visit_dtype(layer.in.x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    auto p = layer.params<T>(out);
    ScanGrads<T> g{};
    for (int k = 0; k < S; ++k)
      g.states[k] = {pointer<T>(grads.steps[k]), pointer<T>(grads.last[k]), pointer<T>(made.initial[k]),
                     pointer<T>(made.reset_states, k)};
    if constexpr (kWithCuda)
      if (on_cuda) {
        StepSums of_steps = layer.empty_step_sums();
        g.steps = {pointer<T>(of_steps.dgates), pointer<T>(of_steps.h_prev), pointer<T>(of_steps.dh_steps)};
        run_backward(layer.cell, p, g, layer.in.x);
        return sum_over_steps(layer.in, out, of_steps, &made);
      }
    g.dx = pointer<T>(made.x);
    for (int d = 0; d < s.directions; ++d)
      g.weights[d] = {pointer<T>(made.w_ih, d), pointer<T>(made.w_hh, d), pointer<T>(made.b_ih, d),
                      pointer<T>(made.b_hh, d), pointer<T>(made.w_hr, d), pointer<T>(made.vectors, d)};
    for (size_t e = 0; e < made.step_inputs.size(); ++e)
      g.inputs[e] = {pointer<T>(made.step_inputs, e), p.inputs[e].per_unit};
    driver<CpuDriver<T>>(layer.cell.cpu, layer.traits).backward(p, g);
  });
  std::vector<Tensor> found = made.differentiable();
  for (size_t i = 0; i < found.size(); ++i)
    if (!wanted[i]) found[i] = Tensor();
  return found;
}

}  // namespace fusedrnn
