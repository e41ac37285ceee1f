// Both passes as operators of the dispatcher, one opaque node a layer in a graph. This library needs no Python, so that
// graphs run without it, too. What they return is a list of what is present. In a list of arguments, what is absent is
// empty and has one dimension.
#include "operators.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "node.h"

namespace fusedrnn {

using at::Tensor;

std::vector<Tensor> flatten(const ScanOutputs& outputs) {
  std::vector<Tensor> flat = outputs.steps;
  flat.insert(flat.end(), outputs.last.begin(), outputs.last.end());
  flat.push_back(outputs.saved), flat.push_back(outputs.hidden);
  return flat;
}

std::vector<Tensor> flatten(const ScanOutputGrads& grads) {
  std::vector<Tensor> flat = grads.steps;
  flat.insert(flat.end(), grads.last.begin(), grads.last.end());
  return flat;
}

ScanOutputs outputs_of(const std::vector<Tensor>& flat, size_t states) {
  TORCH_CHECK_VALUE(flat.size() == 2 * states + 2, "fusedrnn: expected ", 2 * states + 2, " outputs, got ",
                    flat.size());
  auto end = flat.begin() + static_cast<int64_t>(states);
  return {{flat.begin(), end}, {end, flat.end() - 2}, flat[2 * states], flat[2 * states + 1]};
}

ScanOutputGrads grads_of(const std::vector<Tensor>& flat, size_t states) {
  TORCH_CHECK_VALUE(flat.size() == 2 * states, "fusedrnn: expected ", 2 * states, " gradients, got ", flat.size());
  auto end = flat.begin() + static_cast<int64_t>(states);
  return {{flat.begin(), end}, {end, flat.end()}};
}

namespace {

using torch::jit::Stack;

// Absent tensors become undefined.
std::vector<Tensor> without_absent(std::vector<Tensor> tensors) {
  for (Tensor& t : tensors)
    if (t.dim() < 2) t = Tensor();
  return tensors;
}

// The arguments of an operator, in their order.
class Arguments {
 public:
  explicit Arguments(Stack* stack, const c10::OperatorHandle& op)
      : values_(torch::jit::last(*stack, op.schema().arguments().size())) {}

  const c10::IValue& next() { return values_[at_++]; }

  ScanInputs inputs() {
    ScanInputs in;
    ScanInputs::fields(in, *this);
    for (Tensor& zone : in.zones)
      if (zone.dim() == 1) zone = Tensor();
    return in;
  }
  void operator()(Tensor& to) {
    const c10::IValue& value = next();
    if (!value.isNone()) to = value.toTensor();
  }
  void operator()(std::vector<Tensor>& to) {
    const c10::IValue& value = next();
    if (value.isTensorList()) to = value.toTensorVector();  // AOTInductor passes none for an empty list
  }
  std::vector<Tensor> present() { return without_absent(next().toTensorVector()); }

 private:
  c10::ArrayRef<c10::IValue> values_;
  size_t at_ = 0;
};

void put_results(Stack* stack, std::vector<Tensor> results) {
  std::erase_if(results, [](const Tensor& t) { return !t.defined(); });
  stack->emplace_back(std::move(results));
}

void replace_arguments(const c10::OperatorHandle& op, Stack* stack, std::vector<Tensor> results) {
  torch::jit::drop(*stack, op.schema().arguments().size());
  put_results(stack, std::move(results));
}

// The outputs of a forward pass, from a list of those that are present.
ScanOutputs place(std::vector<Tensor> present, const ScanInputs& inputs, bool save, bool sequences) {
  size_t states = inputs.initial.size(), next = 0;
  bool one_step = inputs.is_one_step();
  auto take = [&](bool is_present) { return is_present ? present.at(next++) : Tensor(); };
  ScanOutputs outputs;
  for (size_t k = 0; k < states; ++k) outputs.steps.push_back(take(k == 0 || sequences || (save && !one_step)));
  for (size_t k = 0; k < states; ++k) outputs.last.push_back(take(k > 0 || !one_step));
  outputs.saved = take(save);
  outputs.hidden = take(save && !inputs.w_hr.empty());
  return outputs;
}

void forward(const c10::OperatorHandle& op, Stack* stack) {
  Arguments arguments(stack, op);
  const std::string& cell = arguments.next().toStringRef();
  bool save = arguments.next().toBool(), sequences = arguments.next().toBool();
  ScanInputs inputs = arguments.inputs();
  replace_arguments(op, stack, flatten(scan_forward(cell, save, sequences, inputs)));
}

// The Autograd kernel: records the operator as one node, whose forward pass is the kernel of the device.
void forward_with_autograd(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  auto below = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
  };
  Arguments arguments(stack, op);
  const std::string cell = arguments.next().toStringRef();
  bool save = arguments.next().toBool(), sequences = arguments.next().toBool();
  ScanInputs inputs = arguments.inputs();
  if (!wants_gradients(inputs)) return below();
  std::vector<Tensor> steps;  // also of states that are kept for the backward pass only
  auto run = [&] {
    below();
    ScanOutputs made = place(torch::jit::pop(*stack).toTensorVector(), inputs, save, sequences);
    steps = made.steps;
    return std::vector<ScanOutputs>{made};
  };
  ScanOutputs outputs = scan_differentiably({cell, sequences, inputs, run})[0];
  for (size_t k = 1; k < steps.size(); ++k)
    if (!outputs.steps[k].defined() && steps[k].defined()) outputs.steps[k] = steps[k].detach();
  put_results(stack, flatten(outputs));
}

void backward(const c10::OperatorHandle& op, Stack* stack) {
  Arguments arguments(stack, op);
  const std::string& cell = arguments.next().toStringRef();
  ScanInputs inputs = arguments.inputs();
  ScanOutputs outputs = outputs_of(arguments.present(), inputs.initial.size());
  ScanOutputGrads grads = grads_of(arguments.present(), inputs.initial.size());
  c10::List<bool> wanted = arguments.next().toBoolList();
  std::vector<bool> which(wanted.begin(), wanted.end());
  replace_arguments(op, stack, scan_backward(cell, inputs, outputs, grads, which));
}

}  // namespace

TORCH_LIBRARY(fusedrnn, m) {
  const std::string inputs = kInputsSchema;
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def(("scan_forward(str cell, bool save, bool sequences, " + inputs + ") -> Tensor[]").c_str(), tags);
  m.def(
      ("scan_backward(str cell, " + inputs + ", Tensor[] outputs, Tensor[] grads, bool[] wanted) -> Tensor[]").c_str(),
      tags);
}

TORCH_LIBRARY_IMPL(fusedrnn, CPU, m) {
  m.impl("scan_forward", torch::CppFunction::makeFromBoxedFunction<&forward>());
  m.impl("scan_backward", torch::CppFunction::makeFromBoxedFunction<&backward>());
}
TORCH_LIBRARY_IMPL(fusedrnn, Autograd, m) {
  m.impl("scan_forward", torch::CppFunction::makeFromBoxedFunction<&forward_with_autograd>());
}
#ifdef FUSEDRNN_WITH_CUDA
TORCH_LIBRARY_IMPL(fusedrnn, CUDA, m) {
  m.impl("scan_forward", torch::CppFunction::makeFromBoxedFunction<&forward>());
  m.impl("scan_backward", torch::CppFunction::makeFromBoxedFunction<&backward>());
}
#endif

}  // namespace fusedrnn
