#include "node.h"

#include <ATen/SequenceNumber.h>
#include <ATen/TensorOperators.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <span>
#include <utility>

#include "plain.h"

namespace fusedrnn {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The tensors of layers one after the other, and the lengths of a layer's lists, which all share, in three bits each.
class Packed {
 public:
  static constexpr int kBits = 3;

  void add(const ScanInputs& in) {
    lengths = 0;
    ScanInputs::fields(in, *this);
  }
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
  ScanOutputs outputs(size_t states) {
    variable_list steps(next_, next_ + states);
    next_ += states + 2;
    return {std::move(steps), variable_list(states), *(next_ - 2), *(next_ - 1)};
  }

 private:
  variable_list::const_iterator next_;
  int64_t lengths_;
  int lists_ = 0;
};

// Autograd's nodes have no optional results. These are y, h_n unless of one step, the other final states and, where
// asked for, the other states after every step; here each gets its place in steps and last.
ScanOutputGrads scatter(at::TensorList present, size_t states, bool one_step) {
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
// Of layer k out of `layers`, each of which has as many.
at::TensorList part(at::TensorList all, size_t k, size_t layers) {
  size_t each = all.size() / layers;
  return all.slice(k * each, each);
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
  static variable_list forward(AutogradContext* ctx, const ScanCall* call, std::vector<ScanOutputs>* outputs,
                               at::TensorList) {
    *outputs = call->run();
    Packed kept;
    variable_list present;
    for (size_t k = 0; k < outputs->size(); ++k) {
      const ScanInputs& in = call->layers[k];
      const ScanOutputs& out = (*outputs)[k];
      kept.add(in);
      // One step starts from the initial states: what comes after it is not asked for, and may be changed in place.
      for (const Tensor& t : out.steps) kept(in.is_one_step() ? Tensor() : t);
      kept(out.saved), kept(out.hidden);
      present = concatenate(std::move(present), gather(out, call->sequences));
    }
    ctx->save_for_backward(std::move(kept.tensors));
    ctx->saved_data["cell"] = call->cell;
    ctx->saved_data["lengths"] = kept.lengths;
    ctx->saved_data["layers"] = static_cast<int64_t>(outputs->size());
    ctx->set_materialize_grads(false);
    return present;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& given) {
    variable_list kept = ctx->get_saved_variables();  // unpack once: checkpoint hooks forbid a second unpack
    const std::string& cell = ctx->saved_data["cell"].toStringRef();
    std::vector<BackwardCall> layers = calls(ctx, kept, given);
    Event event(cell, "_backward", layers.back().inputs, given, -1);
    auto readable = [](const Tensor& t) { return !t.defined() || is_plain(t); };
    bool plain = !is_watched() && std::all_of(given.begin(), given.end(), readable) &&
                 std::all_of(kept.begin(), kept.end(), readable);
    if (plain)
      for (const variable_list* tensors : {&std::as_const(kept), &given})
        for (const Tensor& t : *tensors)
          if (t.defined()) check_memory(t, "a tensor of the backward pass");
    return differentiate(cell, std::move(layers), plain && !at::GradMode::is_enabled());
  }

 private:
  static std::vector<BackwardCall> calls(AutogradContext* ctx, const variable_list& kept, const variable_list& given) {
    Unpacker unpacker(kept, ctx->saved_data["lengths"].toInt());
    std::vector<BackwardCall> layers(ctx->saved_data["layers"].toInt());
    size_t input = 0;
    for (size_t k = 0; k < layers.size(); ++k) {
      auto& [in, outputs, grads, wanted] = layers[k];
      in = unpacker.inputs();
      size_t states = in.initial.size();
      outputs = unpacker.outputs(states);
      grads = scatter(part(given, k, layers.size()), states, in.is_one_step());
      if (k) in.x = layers[k - 1].outputs.steps[0];
      wanted.resize(in.differentiable().size());
      for (size_t i = k > 0; i < wanted.size(); ++i) wanted[i] = ctx->needs_input_grad(input++);
    }
    return layers;
  }

  // From the last layer down to the first of which gradients are wanted.
  static variable_list differentiate(const std::string& cell, std::vector<BackwardCall> layers, bool by_kernels) {
    auto any = [](const std::vector<bool>& wanted) {
      return std::find(wanted.begin(), wanted.end(), true) != wanted.end();
    };
    size_t first = 0, count = layers.size();
    while (first + 1 < count && !any(layers[first].wanted)) ++first;
    bool alone = true;  // is y of a layer taken by the one above only?
    for (size_t k = first; k + 1 < count; ++k) {
      layers[k + 1].wanted[0] = true;
      alone &= !layers[k].grads.steps[0].defined();
    }
    std::vector<variable_list> made;
    if (by_kernels && alone && first + 1 < count)
      if (auto side_by_side = scan_layers_backward(cell, {layers.begin() + first, layers.end()}))
        made = std::move(*side_by_side);
    if (made.empty()) made = one_after_the_other(cell, {layers.data() + first, count - first}, by_kernels);
    variable_list gradients(2);  // the first two arguments are no tensors
    for (size_t k = 0; k < count; ++k) {
      variable_list of_layer = k < first ? variable_list(layers[k].wanted.size()) : std::move(made[k - first]);
      gradients.insert(gradients.end(), of_layer.begin() + (k > 0), of_layer.end());
    }
    return gradients;
  }

  static std::vector<variable_list> one_after_the_other(const std::string& cell, std::span<BackwardCall> layers,
                                                        bool by_kernels) {
    std::vector<variable_list> made(layers.size());
    for (size_t k = layers.size(); k-- > 0;) {
      auto& [in, outputs, grads, wanted] = layers[k];
      made[k] = by_kernels ? scan_backward(cell, in, outputs, grads, wanted)
                           : other_gradients(cell, in, outputs, grads, wanted);
      const Tensor& dx = made[k][0];
      if (k == 0 || !dx.defined()) continue;
      Tensor& dy = layers[k - 1].grads.steps[0];
      dy = dy.defined() ? dy + dx : dx;
    }
    return made;
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

std::vector<ScanOutputs> scan_differentiably(const ScanCall& call) {
  std::vector<ScanOutputs> outputs;
  variable_list differentiable = call.layers[0].differentiable();
  for (const ScanInputs& in : call.layers.slice(1)) {
    variable_list all = in.differentiable();
    differentiable.insert(differentiable.end(), all.begin() + 1, all.end());  // x is made by the node itself
  }
  variable_list made = Scan::apply(&call, &outputs, at::TensorList(differentiable));
  for (size_t k = 0; k < outputs.size(); ++k) {
    ScanOutputGrads placed =
        scatter(part(made, k, outputs.size()), outputs[k].last.size(), call.layers[k].is_one_step());
    outputs[k].steps = std::move(placed.steps), outputs[k].last = std::move(placed.last);
  }
  return outputs;
}

variable_list scan(const std::string& cell, bool sequences, bool recompute, const ScanInputs& inputs) {
  bool differentiable = wants_gradients(inputs), save = differentiable && !recompute;
  Event event(cell, "", inputs, {}, differentiable ? at::sequence_number::peek() : -1);
  auto run = [&] { return scan_forward(cell, save, sequences || (differentiable && recompute), inputs); };
  auto run_all = [&] { return std::vector<ScanOutputs>{run()}; };
  ScanOutputs outputs = differentiable ? scan_differentiably({cell, sequences, inputs, run_all})[0] : run();
  return concatenate(std::move(outputs.steps), outputs.last);
}

std::optional<std::vector<variable_list>> scan_layers(const std::string& cell, const std::vector<ScanInputs>& layers) {
  bool differentiable = std::any_of(layers.begin(), layers.end(), wants_gradients);
  if (differentiable && !wants_gradients(layers[0])) return {};
  std::optional<Event> event;  // one, as they run at the same time
  auto begin = [&] {
    event.emplace(cell, "", layers[0], variable_list(), differentiable ? at::sequence_number::peek() : -1);
  };
  std::optional<std::vector<ScanOutputs>> made;
  {
    at::NoGradGuard no_grad;
    made = scan_layers(cell, differentiable, layers, begin);
  }
  if (!made) return {};
  if (differentiable) made = scan_differentiably({cell, false, layers, [&] { return std::move(*made); }});
  std::vector<variable_list> results;
  for (ScanOutputs& outputs : *made) results.push_back(concatenate(std::move(outputs.steps), outputs.last));
  return results;
}

void set_gradients(Gradients gradients) { registered_gradients = gradients; }

}  // namespace fusedrnn
