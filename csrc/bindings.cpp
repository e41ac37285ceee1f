// The border between torch and the kernels: check, allocate, fill ScanParams, call. No arithmetic.
#include <ATen/autocast_mode.h>
#include <ATen/core/DimVector.h>
#include <ATen/core/Tensor.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bindings_autograd.h"
#include "bindings_cuda.h"
#include "bindings_memory.h"
#include "bindings_plain.h"
#include "bindings_sums.h"
#include "dispatch.h"
#include "scan.h"

namespace {

using at::Tensor;
using Size = at::DimVector;
using std::optional;
using namespace fusedrnn;

template <class... Args>
void check(bool good, const char* what, const Args&... seen) {
  TORCH_CHECK_VALUE(good, "fusedrnn: ", what, seen...);
}

CellKind cell_kind(const std::string& mode) {
  if (mode == "LSTM") return CellKind::kLstm;
  if (mode == "GRU") return CellKind::kGru;
  if (mode == "RNN_TANH") return CellKind::kRnnTanh;
  check(mode == "RNN_RELU", "mode must be LSTM, GRU, RNN_TANH or RNN_RELU, got ", mode);
  return CellKind::kRnnRelu;
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

// A layer's tensors, dense, of one dtype, with consistent sizes. Owns what ScanParams only points to.
class Layer {
 public:
  Layer(const std::string& mode, const Args& args, const std::vector<Tensor>& weights)
      : kind(cell_kind(mode)), sizes(cell_sizes(kind)) {
    const auto& [x_given, h0_given, c0, batch_sizes, lengths, reset, reset_h, reset_c, h_mask, zone_h, zone_c] = args;
    check(x_given && h0_given, "x and h0 must be tensors");
    const Tensor &x = *x_given, &h0 = *h0_given;
    options = x.options();
    packed = batch_sizes.has_value();
    check(x.is_cpu() || (kWithCuda && x.is_cuda()), "there are compiled kernels for the CPU",
          kWithCuda ? " and CUDA" : "", ", got a tensor on ", x.device());
    one_step = h0.dim() == 2 && !batch_sizes && !lengths && !reset;
    check(x.dim() == (batch_sizes || one_step ? 2 : 3),
          "x must be [T, N, I], [R, I] with batch_sizes, or [N, I] with h0 [N, P]; got ", x.sizes());
    check(one_step || (h0.dim() == 3 && h0.size(0) >= 1 && h0.size(0) <= 2), "h0 must be [D, N, P] with D 1 or 2, got ",
          h0.sizes());
    shape.directions = one_step ? 1 : static_cast<int>(h0.size(0));
    size_t count = weights.size() / shape.directions;
    check(count >= 2 && count <= 5 && count * shape.directions == weights.size(),
          "weights must be 2 to 5 tensors a direction, got ", weights.size(), " for D = ", shape.directions);
    shape.rows = h0.size(-2);
    shape.projected = h0.size(-1);
    shape.input = x.size(-1);
    shape.hidden = weights[0].size(0) / sizes.gates;
    steps(x, batch_sizes);
    this->x = dense(x, "x");
    this->h0 = take(h0, state(shape.projected), "h0");
    if (has_cell_state()) {
      check(c0.has_value(), "an LSTM needs c0");
      this->c0 = take(*c0, state(shape.hidden), "c0");
    }
    if (reset_h) this->reset_h = take(*reset_h, this->h0.sizes(), "reset_h");
    if (reset_c) this->reset_c = take(*reset_c, this->c0.sizes(), "reset_c");
    if (lengths) this->lengths = take(*lengths, {shape.rows}, "lengths", at::kLong);
    if (reset) this->reset = take(dense(*reset, "reset").flatten(), {shape.packed_rows}, "reset", at::kBool);
    take_weights(weights, count);
    check(!zone_c || has_cell_state(), "zone_c is for a cell with c");
    if (h_mask) this->h_mask = take(*h_mask, h0.sizes(), "h_mask");
    if (zone_h) this->zone_h = take_zone(*zone_h, shape.projected, "zone_h");
    if (zone_c) this->zone_c = take_zone(*zone_c, shape.hidden, "zone_c");
  }

  bool has_cell_state() const { return kind == CellKind::kLstm; }
  bool projects() const { return weights[4].defined(); }

  template <class T>
  ScanParams<T> params() const {
    ScanParams<T> p{};
    p.shape = shape;
    p.batch = {x.is_cuda() ? pointer<int64_t>(device_offsets) : offsets.data(), pointer<int64_t>(lengths),
               pointer<bool>(reset)};
    for (int d = 0; d < shape.directions; ++d) {
      const Tensor* w = &weights[5 * d];
      p.weights[d] = {pointer<T>(w[0]), pointer<T>(w[1]), pointer<T>(w[2]), pointer<T>(w[3]), pointer<T>(w[4])};
    }
    p.x = pointer<T>(x);
    p.h0 = pointer<T>(h0);
    p.c0 = pointer<T>(c0);
    p.reset_h = pointer<T>(reset_h);
    p.reset_c = pointer<T>(reset_c);
    p.h_mask = pointer<T>(h_mask);
    p.zone_h = zone(zone_h);
    p.zone_c = zone(zone_c);
    return p;
  }

  template <class T>
  static T* pointer(const Tensor& t) {
    return t.defined() ? static_cast<T*>(t.data_ptr()) : nullptr;
  }

  Tensor empty(at::IntArrayRef size) const { return fusedrnn::empty(size, options); }

  // The size of a state [D, N, width], or [N, width] of one step.
  Size state(int64_t width) const {
    return one_step ? Size{shape.rows, width} : Size{shape.directions, shape.rows, width};
  }

  // The size of a sequence in the layout of x: [T, N, D*width], [R, D*width] if packed, or [N, width] of one step.
  Size sequence(int64_t width) const {
    Size size(x.sizes());
    size.back() = shape.directions * width;
    return size;
  }

  // The values of t, one behind the other: only where they are in memory, and all of them.
  static Tensor dense(const Tensor& t, const char* name) {
    check(is_plain(t), name, " must be a dense tensor that holds its values itself, got one of ", t.key_set());
    check_memory(t, name);
    return t.contiguous();
  }

  // A tensor as the drivers want it: dense, with this size and this layer's device and dtype.
  Tensor take(const Tensor& t, at::IntArrayRef size, const char* name, optional<at::ScalarType> dtype = {}) const {
    at::ScalarType wanted = dtype.value_or(options.dtype().toScalarType());
    check(t.scalar_type() == wanted, name, " must be ", wanted, ", got ", t.scalar_type());
    check(t.device() == options.device(), name, " must be on ", options.device(), ", got ", t.device());
    check(t.sizes() == size, name, " must be ", size, ", got ", t.sizes());
    return dense(t, name);
  }

  // A mask of every step, or one number.
  Tensor take_zone(const Tensor& t, int64_t width, const char* name) const {
    check(t.dim() || t.is_cpu(), name, " of one number must be on the CPU, got ", t.device());
    return t.dim() ? take(t, sequence(width), name, at::kBool) : dense(t, name).to(at::kDouble);
  }

  static Zone zone(const Tensor& t) {
    if (!t.defined()) return {};
    return t.dim() ? Zone{pointer<bool>(t), 0} : Zone{nullptr, *t.const_data_ptr<double>()};
  }

  const CellKind kind;
  const CellSizes sizes;
  Shape shape{};
  at::TensorOptions options;
  Size offsets;
  Tensor device_offsets;  // on CUDA, of packed input
  bool packed;
  bool one_step;  // of a cell: x [N, I] and states [N, P], without dimensions for steps and directions
  Tensor x, h0, c0, lengths, reset, reset_h, reset_c, h_mask, zone_h, zone_c;
  Tensor weights[10];  // five a direction: w_ih, w_hh, b_ih, b_hh, w_hr; absent ones undefined

 private:
  void steps(const Tensor& x, const optional<Tensor>& batch_sizes) {
    offsets.push_back(0);
    if (!batch_sizes) {
      check(x.size(-2) == shape.rows, "x has ", x.size(-2), " rows, but h0 has ", shape.rows);
      int64_t steps = one_step ? 1 : x.size(0);
      for (int64_t t = 0; t < steps; ++t) offsets.push_back(offsets.back() + shape.rows);
    } else {
      Tensor step_rows = dense(*batch_sizes, "batch_sizes").to(at::kLong);
      check(step_rows.device().is_cpu() && step_rows.dim() == 1, "batch_sizes must be 1-D on the CPU");
      int64_t previous = shape.rows;
      for (int64_t t = 0; t < step_rows.size(0); ++t) {
        int64_t n = step_rows.data_ptr<int64_t>()[t];
        check(n >= 0 && n <= previous, "batch_sizes must start at most at N and never increase; got ", n, " after ",
              previous);
        offsets.push_back(offsets.back() + (previous = n));
      }
      check(offsets.back() == x.size(0), "batch_sizes add up to ", offsets.back(), " rows, but x has ", x.size(0));
    }
    shape.steps = static_cast<int64_t>(offsets.size()) - 1;
    shape.packed_rows = offsets.back();
    if constexpr (kWithCuda)
      if (x.is_cuda() && batch_sizes) device_offsets = copy_to_device(offsets, x.device());
  }

  void take_weights(const std::vector<Tensor>& given, size_t count) {
    int64_t gates = sizes.gates * shape.hidden;
    bool biased = count >= 4, projected = count % 2 == 1;
    check(projected ? has_cell_state() : shape.projected == shape.hidden,
          "only an LSTM with w_hr has a hidden state of another size; got ", shape.projected, " for hidden size ",
          shape.hidden);
    for (int d = 0; d < shape.directions; ++d) {
      const Tensor* w = &given[count * d];
      Tensor* own = &weights[5 * d];
      own[0] = take(w[0], {gates, shape.input}, "w_ih");
      own[1] = take(w[1], {gates, shape.projected}, "w_hh");
      if (biased) own[2] = take(w[2], {gates}, "b_ih"), own[3] = take(w[3], {gates}, "b_hh");
      if (projected) own[4] = take(w[count - 1], {shape.projected, shape.hidden}, "w_hr");
    }
  }
};

}  // namespace

std::vector<Tensor> fusedrnn::scan_forward(const std::string& mode, bool training, bool c_sequence, const Args& args,
                                           const std::vector<Tensor>& weights) {
  Layer layer(mode, args, weights);
  const Tensor& x = layer.x;
  const Shape& s = layer.shape;
  Tensor y = layer.empty(layer.sequence(s.projected)), h_n = layer.one_step ? y : layer.empty(layer.h0.sizes());
  Tensor c_n, c_steps, saved, hidden;
  if (layer.has_cell_state()) {
    c_n = layer.empty(layer.c0.sizes());
    if ((training && !layer.one_step) || c_sequence) c_steps = layer.empty(layer.sequence(s.hidden));
  }
  Tensor gates_x;
  if constexpr (kWithCuda)
    if (x.is_cuda())
      gates_x = project_input(x, layer.weights, s, layer.sizes.gates, training ? layer.sizes.saved : layer.sizes.gates);
  if (x.is_cuda() && s.steps == 0) {  // no step, no kernel that would put the states down
    h_n.copy_(layer.h0);
    if (c_n.defined()) c_n.copy_(layer.c0);
  }
  if (training)
    saved = gates_x.defined() ? gates_x : layer.empty({s.directions, s.packed_rows, layer.sizes.saved, s.hidden});
  if (training && layer.projects()) hidden = layer.empty({s.directions, s.packed_rows, s.hidden});
  visit_dtype(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    auto p = layer.params<T>();
    p.y = Layer::pointer<T>(y), p.h_n = Layer::pointer<T>(h_n), p.c_n = Layer::pointer<T>(c_n);
    p.c_steps = Layer::pointer<T>(c_steps), p.saved = Layer::pointer<T>(saved), p.hidden = Layer::pointer<T>(hidden);
    p.gates_x = Layer::pointer<T>(gates_x);
    pybind11::gil_scoped_release no_gil;
    if constexpr (kWithCuda)
      if (x.is_cuda()) return run_forward(layer.kind, p, x);
    scan_forward_cpu(layer.kind, p);
  });
  return {y, layer.one_step ? Tensor() : h_n, c_n, c_steps, saved, hidden};
}

namespace {

using Optional = std::vector<optional<Tensor>>;

std::vector<Tensor> present(const Optional& given) {  // undefined where there is none
  std::vector<Tensor> all;
  for (const auto& t : given) all.push_back(t.value_or(Tensor()));
  return all;
}

// Tier, groups, blocks, row tiles, replicas and shared bytes of the plan for a layer on a device, for tests.
auto layer_plan(const std::string& mode, bool backward, int64_t steps, int64_t rows, int64_t hidden, int64_t projected,
                int directions, int value_bytes, int multiprocessors, int shared_bytes, int capability,
                const std::string& forced) {
  Job job{backward,
          cell_sizes(cell_kind(mode)),
          {steps, rows, steps * rows, 0, hidden, projected, directions},
          value_bytes};
  Device device{multiprocessors, shared_bytes, capability};
  Plan p = forced.empty() ? make_plan(job, device) : make_forced_plan(job, device, forced);
  return std::make_tuple(kTierNames[static_cast<int>(p.tier)], p.groups, p.blocks, p.row_tiles, p.replicas,
                         p.shared_bytes);
}

}  // namespace

std::vector<Tensor> fusedrnn::scan_backward(const std::string& mode, const Args& args,
                                            const std::vector<Tensor>& weights, const std::vector<Tensor>& outputs,
                                            const std::vector<Tensor>& grads, const std::vector<bool>& wanted) {
  Layer layer(mode, args, weights);
  const Shape& s = layer.shape;
  int64_t D = s.directions, R = s.packed_rows;
  auto given = [&](const Tensor& t, at::IntArrayRef size, const char* name) {
    return t.defined() ? layer.take(t, size, name) : t;
  };
  Size y_size = layer.sequence(s.projected), c_size = layer.sequence(s.hidden);
  Tensor y = given(outputs[0], y_size, "y"), c_steps = given(outputs[1], c_size, "c_steps");
  Tensor saved = layer.take(outputs[2], {D, R, layer.sizes.saved, s.hidden}, "saved");
  Tensor hidden = given(outputs[3], {D, R, s.hidden}, "hidden");
  Tensor dy = given(grads[0], y_size, "dy"), dh_n = given(grads[1], layer.state(s.projected), "dh_n");
  Tensor dc_n = given(grads[2], layer.state(s.hidden), "dc_n"), dc_steps = given(grads[3], c_size, "dc_steps");
  check(layer.one_step || y.defined(), "more than one step needs y");
  check(layer.one_step || !layer.has_cell_state() || c_steps.defined(), "an LSTM of more than one step needs c_steps");
  check(!layer.projects() || hidden.defined(), "a projection needs hidden");
  bool shifted = !layer.packed && !layer.lengths.defined() && !layer.reset.defined() && !layer.h_mask.defined();
  Tensor dh0 = layer.empty(layer.h0.sizes()), dc0, dreset_h, dreset_c;
  if (layer.has_cell_state()) dc0 = layer.empty(layer.c0.sizes());
  if (layer.reset_h.defined()) dreset_h = layer.empty(layer.h0.sizes());
  if (layer.reset_c.defined()) dreset_c = layer.empty(layer.c0.sizes());
  size_t count = weights.size() / D;
  std::vector<Tensor> found(1 + weights.size());
  auto allocate = [&](Tensor& gradient, const Tensor& of, bool is_wanted) {
    if (is_wanted) gradient = layer.empty(of.sizes());
  };
  if (layer.x.is_cpu()) {
    allocate(found[0], layer.x, wanted[0]);
    for (size_t i = 0; i < weights.size(); ++i) allocate(found[1 + i], weights[i], wanted[5 + i]);
  }
  visit_dtype(layer.x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    auto p = layer.params<T>();
    p.y = Layer::pointer<T>(y), p.c_steps = Layer::pointer<T>(c_steps), p.saved = Layer::pointer<T>(saved);
    p.hidden = Layer::pointer<T>(hidden);
    ScanGrads<T> g{};
    g.dy = Layer::pointer<T>(dy), g.dh_n = Layer::pointer<T>(dh_n);
    g.dc_n = Layer::pointer<T>(dc_n), g.dc_steps = Layer::pointer<T>(dc_steps);
    g.dh0 = Layer::pointer<T>(dh0), g.dc0 = Layer::pointer<T>(dc0);
    g.dreset_h = Layer::pointer<T>(dreset_h), g.dreset_c = Layer::pointer<T>(dreset_c);
    if constexpr (kWithCuda)
      if (layer.x.is_cuda()) {
        Tensor dgates = layer.empty({D, R, layer.sizes.grads, s.hidden}), h_prev, dh_steps;
        if (!shifted) h_prev = layer.empty({D, R, s.projected});
        if (layer.projects()) dh_steps = layer.empty({D, R, s.projected});
        g.steps = {Layer::pointer<T>(dgates), Layer::pointer<T>(h_prev), Layer::pointer<T>(dh_steps)};
        run_backward(layer.kind, p, g, layer.x);
        std::vector<bool> sums_wanted(wanted.begin() + 4, wanted.end());
        sums_wanted[0] = wanted[0];
        found = sum_over_steps(layer.x, layer.h0, y, weights, hidden, sums_wanted, dgates, h_prev, dh_steps);
        return;
      }
    g.dx = Layer::pointer<T>(found[0]);
    for (int d = 0; d < D; ++d) {
      const Tensor* dw = &found[1 + d * count];
      bool biased = count >= 4;
      g.sums[d] = {Layer::pointer<T>(dw[0]), Layer::pointer<T>(dw[1]), biased ? Layer::pointer<T>(dw[2]) : nullptr,
                   biased ? Layer::pointer<T>(dw[3]) : nullptr,
                   layer.projects() ? Layer::pointer<T>(dw[count - 1]) : nullptr};
    }
    scan_backward_cpu(layer.kind, p, g);
  });
  Tensor states[] = {dh0, dc0, dreset_h, dreset_c};
  for (int i = 0; i < 4; ++i) found.insert(found.begin() + 1 + i, wanted[1 + i] ? states[i] : Tensor());
  return found;
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.attr("torch_version") = FUSEDRNN_TORCH_VERSION;
#ifdef FUSEDRNN_WITH_CUDA
  m.attr("cuda_version") = CUDART_VERSION;
  m.attr("cuda_archs") = FUSEDRNN_CUDA_ARCHS;
#else
  m.attr("cuda_version") = pybind11::none();
#endif
  m.def("cpu_capability", &cpu_capability, "The instruction set in use: DEFAULT, AVX2, AVX512 or AVX512_BF16.");
  m.def("empty_cache", &empty_cache, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("plan", &layer_plan);
  m.def("is_watched", &is_watched);
  m.def("is_dispatched", [](const Tensor& t) { return is_dispatched(t); });
  m.def("cached_cast",
        [](const Tensor& t, at::ScalarType dtype) { return at::autocast::cached_cast(dtype, t, t.device().type()); });
  m.def("scan", &scan);
  m.def("set_gradients", &set_gradients);
  m.def("scan_forward", &scan_forward);
  m.def(
      "scan_backward",
      [](const std::string& mode, const Args& args, const std::vector<Tensor>& weights, const Optional& outputs,
         const Optional& grads, const std::vector<bool>& wanted) {
        return scan_backward(mode, args, weights, present(outputs), present(grads), wanted);
      },
      pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("sum_over_steps", &sum_over_steps, pybind11::call_guard<pybind11::gil_scoped_release>());
}
