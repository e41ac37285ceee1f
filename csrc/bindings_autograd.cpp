#include "bindings_autograd.h"

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

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

pybind11::object* python_gradients = nullptr;  // never freed: autograd may still run while Python ends

variable_list ask_python(const std::string& mode, const Args& args, const variable_list& weights,
                         const variable_list& outputs, const variable_list& grads, const std::vector<bool>& wanted) {
  pybind11::gil_scoped_acquire gil;
  try {
    auto made = (*python_gradients)(mode, args, weights, outputs, grads, wanted);
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
    for (size_t i : kKept) kept.push_back(outputs[i]);
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
    // Nothing of Python's is needed for gates that were kept, on the CPU, and gradients that are not batched.
    bool plain = !at::GradMode::is_enabled() && outputs[2].defined() && args[0]->is_cpu();
    for (const Tensor& t : given) plain = plain && (!t.defined() || t.has_storage());
    const std::string& mode = ctx->saved_data["mode"].toStringRef();
    variable_list grads = spread(args, given);
    variable_list found = plain ? scan_backward(mode, args, weights, outputs, grads, wanted)
                                : ask_python(mode, args, weights, outputs, grads, wanted);
    found.insert(found.begin(), 4, Tensor());  // the first four arguments are no tensors
    return found;
  }
};

}  // namespace

std::vector<Tensor> scan(const std::string& mode, bool c_sequence, bool recompute, const Args& args,
                         const std::vector<Tensor>& weights) {
  auto of_weights = [](const Tensor& t) { return t.requires_grad(); };
  auto of_args = [&](size_t i) { return args[i] && args[i]->requires_grad(); };
  if (at::GradMode::is_enabled() && (std::any_of(weights.begin(), weights.end(), of_weights) ||
                                     std::any_of(std::begin(kDifferentiable), std::end(kDifferentiable), of_args)))
    return spread(args, Scan::apply(mode, c_sequence, recompute, &args, args[0], args[1], args[2], args[6], args[7],
                                    at::TensorList(weights)));
  variable_list outputs = scan_forward(mode, false, c_sequence, args, weights);
  outputs.resize(4);
  return outputs;
}

void set_gradients(pybind11::object gradients) { python_gradients = new pybind11::object(std::move(gradients)); }

}  // namespace fusedrnn
