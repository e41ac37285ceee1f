// Both passes as operators of the dispatcher, one opaque node a layer in a graph. This library needs no Python, so that
// graphs run without it, too. Operators have no optional results: what is absent is empty and has one dimension.
#include "operators.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace fusedrnn {

using at::Tensor;

std::vector<Tensor> flatten(const ScanOutputs& outputs) {
  std::vector<Tensor> flat = outputs.steps;
  flat.insert(flat.end(), outputs.last.begin(), outputs.last.end());
  flat.push_back(outputs.saved), flat.push_back(outputs.hidden);
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
  std::vector<Tensor> present() {  // undefined where absent
    std::vector<Tensor> all = next().toTensorVector();
    for (Tensor& t : all)
      if (t.dim() < 2) t = Tensor();
    return all;
  }

 private:
  c10::ArrayRef<c10::IValue> values_;
  size_t at_ = 0;
};

void give_back(const c10::OperatorHandle& op, Stack* stack, std::vector<Tensor> results, const Tensor& x) {
  for (Tensor& t : results)
    if (!t.defined()) t = at::empty({0}, x.options());
  torch::jit::drop(*stack, op.schema().arguments().size());
  stack->emplace_back(std::move(results));
}

void forward(const c10::OperatorHandle& op, Stack* stack) {
  Arguments arguments(stack, op);
  const std::string& cell = arguments.next().toStringRef();
  bool save = arguments.next().toBool(), sequences = arguments.next().toBool();
  ScanInputs inputs = arguments.inputs();
  give_back(op, stack, flatten(scan_forward(cell, save, sequences, inputs)), inputs.x);
}

void backward(const c10::OperatorHandle& op, Stack* stack) {
  Arguments arguments(stack, op);
  const std::string& cell = arguments.next().toStringRef();
  ScanInputs inputs = arguments.inputs();
  ScanOutputs outputs = outputs_of(arguments.present(), inputs.initial.size());
  ScanOutputGrads grads = grads_of(arguments.present(), inputs.initial.size());
  c10::List<bool> wanted = arguments.next().toBoolList();
  std::vector<bool> which(wanted.begin(), wanted.end());
  give_back(op, stack, scan_backward(cell, inputs, outputs, grads, which), inputs.x);
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
#ifdef FUSEDRNN_WITH_CUDA
TORCH_LIBRARY_IMPL(fusedrnn, CUDA, m) {
  m.impl("scan_forward", torch::CppFunction::makeFromBoxedFunction<&forward>());
  m.impl("scan_backward", torch::CppFunction::makeFromBoxedFunction<&backward>());
}
#endif

}  // namespace fusedrnn
