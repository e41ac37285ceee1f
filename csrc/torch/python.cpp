#include "python.h"

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <utility>

#include "node.h"
#include "operators.h"
#include "packed_layers.h"
#include "plain.h"

namespace fusedrnn {
namespace {

using at::Tensor;

pybind11::object* python_gradients = nullptr;  // never freed: autograd may still run while Python ends

pybind11::list to_list(const std::vector<Tensor>& tensors) {
  pybind11::list list;
  for (const Tensor& t : tensors) list.append(t.defined() ? pybind11::cast(t) : pybind11::none());
  return list;
}

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

std::vector<Tensor> ask_python(const std::string& cell, const ScanInputs& inputs, const ScanOutputs& outputs,
                               const ScanOutputGrads& grads, const std::vector<bool>& wanted) {
  pybind11::gil_scoped_acquire gil;
  try {
    auto made =
        (*python_gradients)(cell, to_python(inputs), to_list(flatten(outputs)), to_list(flatten(grads)), wanted);
    std::vector<Tensor> gradients;
    for (auto& t : made.cast<std::vector<std::optional<Tensor>>>()) gradients.push_back(t.value_or(Tensor()));
    return gradients;
  } catch (pybind11::error_already_set& error) {
    error.restore();
    python_error raised;
    raised.persist();
    throw raised;
  }
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

std::optional<std::vector<Tensor>> scan(const std::string& cell, bool sequences, bool recompute,
                                        pybind11::handle given) {
  FromPython python(given);
  const ScanInputs& in = python.in;
  if (!python.plain || is_watched() || (in.x.defined() && !has_kernels(in.x.scalar_type()))) return {};
  TORCH_CHECK_VALUE(in.x.defined() && !in.initial.empty() && in.initial[0].defined(),
                    "fusedrnn: x and h0 must be tensors");
  pybind11::gil_scoped_release no_gil;
  return scan(cell, sequences, recompute, in);
}

std::optional<std::vector<std::vector<Tensor>>> scan_layers(const std::string& cell, pybind11::handle layers) {
  std::vector<ScanInputs> inputs;
  for (PyObject* layer : items(layers)) {
    FromPython python(layer);
    if (!python.plain) return {};
    inputs.push_back(std::move(python.in));
  }
  const Tensor& x = inputs.at(0).x;
  if (is_watched() || !x.defined() || !has_kernels(x.scalar_type())) return {};
  pybind11::gil_scoped_release no_gil;
  return scan_layers(cell, inputs);
}

std::optional<std::vector<Tensor>> run_packed(const std::string& cell, int64_t layers, bool projects, bool batch_first,
                                              pybind11::handle weights, pybind11::handle input, pybind11::handle hx) {
  auto plain = [](PyObject* object) { return THPVariable_CheckExact(object) && is_plain(THPVariable_Unpack(object)); };
  auto take = [&](pybind11::handle given, std::vector<Tensor>* to) {
    if (given.is_none()) return true;
    if (PyList_Check(given.ptr()) || PyTuple_Check(given.ptr())) {
      for (PyObject* object : items(given)) {
        if (!plain(object)) return false;
        to->push_back(THPVariable_Unpack(object));
      }
      return !to->empty();
    }
    if (!plain(given.ptr())) return false;
    to->push_back(THPVariable_Unpack(given.ptr()));
    return true;
  };
  PackedLayers all{cell, layers, projects, {}};
  std::vector<Tensor> states;
  if (is_watched() || !plain(input.ptr()) || !take(weights, &all.weights) || !take(hx, &states)) return {};
  const Tensor& x = THPVariable_Unpack(input.ptr());
  pybind11::gil_scoped_release no_gil;
  return run_packed(all, batch_first, x, std::move(states));
}

void set_gradients(pybind11::object gradients) {
  python_gradients = new pybind11::object(std::move(gradients));
  set_gradients(&ask_python);
}

}  // namespace fusedrnn
