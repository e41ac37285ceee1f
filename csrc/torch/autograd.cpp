#include "autograd.h"

#include <ATen/SequenceNumber.h>
#include <ATen/record_function.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <cctype>
#include <utility>

#include "operators.h"
#include "plain.h"

namespace fusedrnn {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The tensors of a layer one after the other, and the lengths of its lists in three bits each.
class Packed {
 public:
  static constexpr int kBits = 3;

  explicit Packed(const ScanInputs& in) { ScanInputs::fields(in, *this); }
  void operator()(const Tensor& t) { tensors.push_back(t); }
  void operator()(const std::vector<Tensor>& list) {
    lengths = lengths << kBits | static_cast<int64_t>(list.size());
    tensors.insert(tensors.end(), list.begin(), list.end());
  }

  variable_list tensors;
  int64_t lengths = 0;
};

class Unpacker {
 public:
  Unpacker(const variable_list& tensors, int64_t lengths) : next_(tensors.begin()), lengths_(lengths) {}

  ScanInputs inputs() {
    ScanInputs in;
    auto count = [&]<class Field>(Field&) { lists_ += !std::is_same_v<Field, Tensor>; };
    ScanInputs::fields(in, count);
    ScanInputs::fields(in, *this);
    return in;
  }
  void operator()(Tensor& t) { t = *next_++; }
  void operator()(std::vector<Tensor>& list) {
    auto end = next_ + (lengths_ >> (--lists_ * Packed::kBits) & ((1 << Packed::kBits) - 1));
    list.assign(next_, end);
    next_ = end;
  }
  variable_list::const_iterator rest() const { return next_; }

 private:
  variable_list::const_iterator next_;
  int64_t lengths_;
  int lists_ = 0;
};

// Autograd's nodes have no optional results. These are y, h_n unless of one step, the other final states and, where
// asked for, the other states after every step; here each gets its place in steps and last.
ScanOutputGrads scatter(const variable_list& present, size_t states, bool one_step) {
  ScanOutputGrads all{variable_list(states), variable_list(states)};
  auto next = present.begin();
  auto take = [&](Tensor& to) {
    if (next != present.end()) to = *next++;
  };
  take(all.steps[0]);
  for (size_t k = one_step; k < states; ++k) take(all.last[k]);
  for (size_t k = 1; k < states; ++k) take(all.steps[k]);
  return all;
}
variable_list gather(const ScanOutputs& outputs, bool sequences) {
  variable_list present{outputs.steps[0]};
  for (const Tensor& t : outputs.last)
    if (t.defined()) present.push_back(t);
  if (sequences) present.insert(present.end(), outputs.steps.begin() + 1, outputs.steps.end());
  return present;
}
variable_list concatenate(variable_list a, const variable_list& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// What a profiler shows of a layer while this lives: fusedrnn::lstm or fusedrnn::lstm_backward, and so on.
class Event {
 public:
  Event(const std::string& cell, const char* suffix, const ScanInputs& in, const variable_list& grads,
        int64_t sequence_nr) {
    auto listeners = at::getStepCallbacksUnlessEmpty(at::RecordScope::FUNCTION);
    if (!listeners) return;
    std::string name = "fusedrnn::" + cell + suffix;
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
    inputs_.emplace_back(in.x);
    for (const Tensor& t : in.initial) inputs_.emplace_back(t);
    variable_list weights;
    for (auto kind : kWeightKinds) weights.insert(weights.end(), (in.*kind).begin(), (in.*kind).end());
    inputs_.emplace_back(weights);
    for (const Tensor& t : grads) inputs_.emplace_back(t);
    record_.emplace(std::move(*listeners));
    record_->before(name, &inputs_, sequence_nr);
  }

 private:
  std::vector<at::IValue> inputs_;
  std::optional<at::RecordFunction> record_;
};

pybind11::object* python_gradients = nullptr;  // never freed: autograd may still run while Python ends

pybind11::list to_list(const variable_list& tensors) {
  pybind11::list list;
  for (const Tensor& t : tensors) list.append(t.defined() ? pybind11::cast(t) : pybind11::none());
  return list;
}

variable_list ask_python(const std::string& cell, const ScanInputs& inputs, const ScanOutputs& outputs,
                         const ScanOutputGrads& grads, const std::vector<bool>& wanted) {
  pybind11::gil_scoped_acquire gil;
  try {
    auto made = (*python_gradients)(cell, to_python(inputs), to_list(flatten(outputs)),
                                    to_list(concatenate(grads.steps, grads.last)), wanted);
    variable_list gradients;
    for (auto& t : made.cast<std::vector<std::optional<Tensor>>>()) gradients.push_back(t.value_or(Tensor()));
    return gradients;
  } catch (pybind11::error_already_set& error) {
    error.restore();
    python_error raised;
    raised.persist();
    throw raised;
  }
}

ScanOutputs without_gil(const std::string& cell, bool save, bool sequences, ScanInputs inputs) {
  pybind11::gil_scoped_release no_gil;
  return scan_forward(cell, save, sequences, std::move(inputs));
}

c10::ArrayRef<PyObject*> items(pybind11::handle sequence) {
  TORCH_CHECK_TYPE(PyList_Check(sequence.ptr()) || PyTuple_Check(sequence.ptr()), "fusedrnn: expected a list or tuple");
  return {PySequence_Fast_ITEMS(sequence.ptr()), static_cast<size_t>(PySequence_Fast_GET_SIZE(sequence.ptr()))};
}

// Reads a Python tuple of the fields, and says whether the kernels may read all of its tensors.
class FromPython {
 public:
  explicit FromPython(pybind11::handle tuple) : fields_(items(tuple)) {
    ScanInputs::fields(in, *this);
    TORCH_CHECK_TYPE(next_ == fields_.size(), "fusedrnn: a layer has ", next_, " fields, got ", fields_.size());
  }
  void operator()(Tensor& to) { read(next(), to); }
  void operator()(std::vector<Tensor>& to) {
    auto objects = items(next());
    to.resize(objects.size());
    for (size_t i = 0; i < objects.size(); ++i) read(objects[i], to[i]);
  }

  ScanInputs in;
  bool plain = true;

 private:
  PyObject* next() {
    TORCH_CHECK_TYPE(next_ < fields_.size(), "fusedrnn: a layer has more than ", fields_.size(), " fields");
    return fields_[next_++];
  }
  void read(PyObject* object, Tensor& to) {
    if (object == Py_None) return;
    TORCH_CHECK_TYPE(THPVariable_Check(object), "fusedrnn: expected a tensor");
    to = THPVariable_Unpack(object);
    plain &= THPVariable_CheckExact(object) && is_plain(to);
  }

  c10::ArrayRef<PyObject*> fields_;
  size_t next_ = 0;
};

}  // namespace

ScanInputs inputs_of(pybind11::handle tuple) { return FromPython(tuple).in; }

pybind11::tuple to_python(const ScanInputs& inputs) {
  pybind11::list fields;
  auto add = [&]<class Field>(const Field& field) {
    if constexpr (!std::is_same_v<Field, Tensor>)
      fields.append(to_list(field));
    else
      fields.append(field.defined() ? pybind11::cast(field) : pybind11::none());
  };
  ScanInputs::fields(inputs, add);
  return pybind11::tuple(fields);
}

// Its name is what autograd calls the node.
class Scan : public torch::autograd::Function<Scan> {
 public:
  static variable_list forward(AutogradContext* ctx, const std::string& cell, bool sequences, bool recompute,
                               const ScanInputs* inputs, at::TensorList) {
    ScanOutputs outputs = without_gil(cell, !recompute, sequences || recompute, *inputs);
    Packed kept(*inputs);
    // One step starts from the initial states: what comes after it is not asked for, and may be changed in place.
    for (const Tensor& t : outputs.steps) kept(inputs->is_one_step() ? Tensor() : t);
    kept(outputs.saved), kept(outputs.hidden);
    ctx->save_for_backward(std::move(kept.tensors));
    ctx->saved_data["cell"] = cell;
    ctx->saved_data["lengths"] = kept.lengths;
    ctx->set_materialize_grads(false);
    return gather(outputs, sequences);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& given) {
    variable_list kept = ctx->get_saved_variables();  // unpack once: checkpoint hooks forbid a second unpack
    Unpacker unpacker(kept, ctx->saved_data["lengths"].toInt());
    ScanInputs in = unpacker.inputs();
    size_t states = in.initial.size();
    auto next = unpacker.rest();
    ScanOutputs outputs{{next, next + states}, variable_list(states), *(next + states), *(next + states + 1)};
    std::vector<bool> wanted(in.differentiable().size());
    for (size_t i = 0; i < wanted.size(); ++i) wanted[i] = ctx->needs_input_grad(i);
    const std::string& cell = ctx->saved_data["cell"].toStringRef();
    ScanOutputGrads grads = scatter(given, states, in.is_one_step());
    Event event(cell, "_backward", in, given, -1);
    auto readable = [](const Tensor& t) { return !t.defined() || is_plain(t); };
    bool plain = !is_watched() && std::all_of(given.begin(), given.end(), readable) &&
                 std::all_of(kept.begin(), kept.end(), readable);
    bool differentiable = at::GradMode::is_enabled();
    if (plain)
      for (const variable_list* tensors : {&std::as_const(kept), &given})
        for (const Tensor& t : *tensors)
          if (t.defined()) check_memory(t, "a tensor of the backward pass");
    variable_list gradients = plain && !differentiable ? scan_backward(cell, in, outputs, grads, wanted)
                                                       : ask_python(cell, in, outputs, grads, wanted);
    gradients.insert(gradients.begin(), 4, Tensor());  // the first four arguments are no tensors
    return gradients;
  }
};

std::optional<variable_list> scan(const std::string& cell, bool sequences, bool recompute, pybind11::handle given) {
  FromPython python(given);
  ScanInputs& in = python.in;
  if (!python.plain || is_watched() || (in.x.defined() && !has_kernels(in.x.scalar_type()))) return {};
  size_t states = in.initial.size();
  TORCH_CHECK_VALUE(in.x.defined() && states && in.initial[0].defined(), "fusedrnn: x and h0 must be tensors");
  variable_list inputs;
  if (at::GradMode::is_enabled()) inputs = in.differentiable();
  bool differentiable = std::any_of(inputs.begin(), inputs.end(), [](const Tensor& t) { return t.requires_grad(); });
  Event event(cell, "", in, {}, differentiable ? at::sequence_number::peek() : -1);
  if (differentiable) {
    variable_list made = Scan::apply(cell, sequences, recompute, &in, at::TensorList(inputs));
    ScanOutputGrads all = scatter(made, states, in.is_one_step());
    return concatenate(std::move(all.steps), all.last);
  }
  ScanOutputs outputs = without_gil(cell, false, sequences, std::move(in));
  return concatenate(std::move(outputs.steps), outputs.last);
}

void set_gradients(pybind11::object gradients) { python_gradients = new pybind11::object(std::move(gradients)); }

}  // namespace fusedrnn
