#include "bindings_autograd.h"

#include <ATen/SequenceNumber.h>
#include <ATen/record_function.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <cctype>
#include <utility>

#include "bindings_plain.h"

namespace fusedrnn {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr size_t kDifferentiable[] = {0, 1, 2, 6, 7};  // of Args
constexpr size_t kKept[] = {0, 3, 4, 5};               // of the outputs: y, c_steps, saved, hidden

// Autograd's nodes have no optional results: present ones come one after the other, here each has its place.
variable_list spread(const Args& args, const variable_list& present) {
  bool lstm = args[2].has_value();
  auto next = present.begin();
  variable_list all;
  for (bool exists : {true, args[1]->dim() == 3, lstm, lstm})  // y, h_n, c_n, c_steps
    all.push_back(exists && next != present.end() ? *next++ : Tensor());
  return all;
}

// What a profiler shows of a layer while this lives: fusedrnn::lstm or fusedrnn::lstm_backward, and so on.
class Event {
 public:
  Event(const std::string& mode, const char* suffix, const Args& args, const variable_list& weights,
        const variable_list& grads, int64_t sequence_nr) {
    auto listeners = at::getStepCallbacksUnlessEmpty(at::RecordScope::FUNCTION);
    if (!listeners) return;
    std::string name = "fusedrnn::" + mode + suffix;
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
    for (size_t i : {0, 1, 2}) inputs_.emplace_back(args[i]);
    inputs_.emplace_back(weights);
    for (const Tensor& t : grads) inputs_.emplace_back(t);
    record_.emplace(std::move(*listeners));
    record_->before(name, &inputs_, sequence_nr);
  }

 private:
  std::vector<at::IValue> inputs_;
  std::optional<at::RecordFunction> record_;
};

c10::ArrayRef<PyObject*> items(pybind11::handle sequence) {
  TORCH_CHECK_TYPE(PyList_Check(sequence.ptr()) || PyTuple_Check(sequence.ptr()), "fusedrnn: expected a list or tuple");
  return {PySequence_Fast_ITEMS(sequence.ptr()), static_cast<size_t>(PySequence_Fast_GET_SIZE(sequence.ptr()))};
}

pybind11::object* python_gradients = nullptr;  // never freed: autograd may still run while Python ends

variable_list ask_python(const std::string& mode, const Args& args, const variable_list& weights,
                         const variable_list& outputs, const variable_list& grads, const std::vector<bool>& wanted,
                         bool plain) {
  pybind11::gil_scoped_acquire gil;
  try {
    auto made = (*python_gradients)(mode, args, weights, outputs, grads, wanted, plain);
    variable_list found;
    for (auto& t : made.cast<std::vector<std::optional<Tensor>>>()) found.push_back(t.value_or(Tensor()));
    return found;
  } catch (pybind11::error_already_set& error) {
    error.restore();
    python_error raised;
    raised.persist();
    throw raised;
  }
}

}  // namespace

// Its name is what autograd calls the node.
class Scan : public torch::autograd::Function<Scan> {
 public:
  static variable_list forward(AutogradContext* ctx, const std::string& mode, bool c_sequence, bool recompute,
                               const Args* args, const std::optional<Tensor>&, const std::optional<Tensor>&,
                               const std::optional<Tensor>&, const std::optional<Tensor>&, const std::optional<Tensor>&,
                               at::TensorList weights) {
    variable_list outputs = scan_forward(mode, !recompute, c_sequence || recompute, *args, weights.vec());
    variable_list kept;
    kept.reserve(std::size(*args) + std::size(kKept) + weights.size());
    for (const auto& t : *args) kept.push_back(t.value_or(Tensor()));
    bool one_step = !outputs[1].defined();  // it starts from h0 and c0: y and c_steps are not asked for
    for (size_t i : kKept) kept.push_back(one_step && i < 4 ? Tensor() : outputs[i]);
    kept.insert(kept.end(), weights.begin(), weights.end());
    ctx->save_for_backward(std::move(kept));
    ctx->saved_data["mode"] = mode;
    ctx->set_materialize_grads(false);
    outputs.resize(c_sequence ? 4 : 3);
    std::erase_if(outputs, [](const Tensor& t) { return !t.defined(); });
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& given) {
    variable_list kept = ctx->get_saved_variables();  // asked once: checkpointing allows no more
    auto next = kept.begin();
    Args args;
    for (auto& t : args) {
      if (next->defined()) t = *next;
      ++next;
    }
    variable_list outputs(next, next + std::size(kKept)), weights(next + std::size(kKept), kept.end());
    size_t edge = 0;  // absent arguments have none
    std::vector<bool> wanted;
    for (size_t i : kDifferentiable) wanted.push_back(args[i] && ctx->needs_input_grad(edge++));
    for (size_t i = 0; i < weights.size(); ++i) wanted.push_back(ctx->needs_input_grad(edge++));
    const std::string& mode = ctx->saved_data["mode"].toStringRef();
    variable_list grads = spread(args, given);
    Event event(mode, "_backward", args, weights, given, -1);
    auto readable = [](const Tensor& t) { return !t.defined() || is_plain(t); };
    bool plain = !is_watched() && std::all_of(given.begin(), given.end(), readable) &&
                 std::all_of(kept.begin(), kept.end(), readable);
    // Nothing of Python's is needed for gates that were kept, on the CPU.
    bool done_here = plain && !at::GradMode::is_enabled() && outputs[2].defined() && args[0]->is_cpu();
    if (plain && !done_here)
      for (const variable_list* tensors : {&std::as_const(kept), &given})
        for (const Tensor& t : *tensors)
          if (t.defined()) check_memory(t, "a tensor of the backward pass");
    variable_list found = done_here ? scan_backward(mode, args, weights, outputs, grads, wanted)
                                    : ask_python(mode, args, weights, outputs, grads, wanted, plain);
    found.insert(found.begin(), 4, Tensor());  // the first four arguments are no tensors
    return found;
  }
};

std::optional<variable_list> scan(const std::string& mode, bool c_sequence, bool recompute, pybind11::handle given_args,
                                  pybind11::handle given_weights) {
  auto readable = [](PyObject* t) { return THPVariable_CheckExact(t) && is_plain(THPVariable_Unpack(t)); };
  auto absent_or_readable = [&](PyObject* t) { return t == Py_None || readable(t); };
  auto objects = items(given_args), parameters = items(given_weights);
  Args args;
  TORCH_CHECK(objects.size() == args.size(), "fusedrnn: a layer has ", args.size(), " arguments, got ", objects.size());
  if (is_watched() || !std::all_of(objects.begin(), objects.end(), absent_or_readable) ||
      !std::all_of(parameters.begin(), parameters.end(), readable))
    return {};
  for (size_t i = 0; i < args.size(); ++i)
    if (objects[i] != Py_None) args[i] = THPVariable_Unpack(objects[i]);
  if (args[0] && !has_kernels(args[0]->scalar_type())) return {};
  variable_list weights;
  weights.reserve(parameters.size());
  for (PyObject* t : parameters) weights.push_back(THPVariable_Unpack(t));

  auto of_weights = [](const Tensor& t) { return t.requires_grad(); };
  auto of_args = [&](size_t i) { return args[i] && args[i]->requires_grad(); };
  bool differentiable =
      at::GradMode::is_enabled() && (std::any_of(weights.begin(), weights.end(), of_weights) ||
                                     std::any_of(std::begin(kDifferentiable), std::end(kDifferentiable), of_args));
  Event event(mode, "", args, weights, {}, differentiable ? at::sequence_number::peek() : -1);
  if (differentiable)
    return spread(args, Scan::apply(mode, c_sequence, recompute, &args, args[0], args[1], args[2], args[6], args[7],
                                    at::TensorList(weights)));
  variable_list outputs = scan_forward(mode, false, c_sequence, args, weights);
  outputs.resize(4);
  return outputs;
}

void set_gradients(pybind11::object gradients) { python_gradients = new pybind11::object(std::move(gradients)); }

}  // namespace fusedrnn
