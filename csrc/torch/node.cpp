#include "node.h"

#include <ATen/SequenceNumber.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <utility>

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

std::atomic<Gradients> registered_gradients = nullptr;

variable_list other_gradients(const std::string& cell, const ScanInputs& inputs, const ScanOutputs& outputs,
                              const ScanOutputGrads& grads, const std::vector<bool>& wanted) {
  Gradients gradients = registered_gradients;
  TORCH_CHECK_NOT_IMPLEMENTED(gradients,
                              "fusedrnn: without its Python module, only first derivatives of plain tensors");
  return gradients(cell, inputs, outputs, grads, wanted);
}

}  // namespace

// Its name is what autograd calls the node.
class Scan : public torch::autograd::Function<Scan> {
 public:
  static variable_list forward(AutogradContext* ctx, const ScanCall* call, ScanOutputs* outputs, at::TensorList) {
    *outputs = call->run();
    Packed kept(call->inputs);
    // One step starts from the initial states: what comes after it is not asked for, and may be changed in place.
    for (const Tensor& t : outputs->steps) kept(call->inputs.is_one_step() ? Tensor() : t);
    kept(outputs->saved), kept(outputs->hidden);
    ctx->save_for_backward(std::move(kept.tensors));
    ctx->saved_data["cell"] = call->cell;
    ctx->saved_data["lengths"] = kept.lengths;
    ctx->set_materialize_grads(false);
    return gather(*outputs, call->sequences);
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
                                                       : other_gradients(cell, in, outputs, grads, wanted);
    gradients.insert(gradients.begin(), 2, Tensor());  // the first two arguments are no tensors
    return gradients;
  }
};

bool wants_gradients(const ScanInputs& inputs) {
  if (!at::GradMode::is_enabled()) return false;
  bool any = false;
  auto look = [&]<class Field>(const Field& field) {
    if constexpr (std::is_same_v<Field, Tensor>)
      any |= field.requires_grad();
    else
      for (const Tensor& t : field) any |= t.requires_grad();
  };
  ScanInputs::differentiable_fields(inputs, look);
  TORCH_CHECK(!any || inputs.packed.empty(),
              "packed weights are for inference and have no gradients: call the layer under torch.no_grad(), or with "
              "tensors that require none");
  return any;
}

ScanOutputs scan_differentiably(const ScanCall& call) {
  ScanOutputs outputs;
  variable_list differentiable = call.inputs.differentiable();
  variable_list made = Scan::apply(&call, &outputs, at::TensorList(differentiable));
  ScanOutputGrads placed = scatter(made, outputs.last.size(), call.inputs.is_one_step());
  return {placed.steps, placed.last, outputs.saved, outputs.hidden};
}

variable_list scan(const std::string& cell, bool sequences, bool recompute, const ScanInputs& inputs) {
  bool differentiable = wants_gradients(inputs), save = differentiable && !recompute;
  Event event(cell, "", inputs, {}, differentiable ? at::sequence_number::peek() : -1);
  auto run = [&] { return scan_forward(cell, save, sequences || (differentiable && recompute), inputs); };
  ScanOutputs outputs = differentiable ? scan_differentiably({cell, sequences, inputs, run}) : run();
  return concatenate(std::move(outputs.steps), outputs.last);
}

void set_gradients(Gradients gradients) { registered_gradients = gradients; }

}  // namespace fusedrnn
