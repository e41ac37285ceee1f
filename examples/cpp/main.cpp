// Runs a model with layers of fusedrnn without Python: a package of AOTInductor (.pt2) or a trace of TorchScript (.pt).
//
//   run_layers LIBRARY MODEL INPUT OUTPUT
//
// LIBRARY is what fusedrnn.library_path() names. INPUT holds a tensor that torch.save wrote; OUTPUT will hold the tuple
// of the model's results, for torch.load.
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>
#include <torch/script.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

namespace {

std::vector<char> read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  TORCH_CHECK(file, "cannot read ", path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// All tensors of a result: of a tuple in a tuple, too.
void flatten(const c10::IValue& value, std::vector<at::Tensor>* to) {
  if (value.isTensor()) return to->push_back(value.toTensor());
  for (const c10::IValue& element : value.toTupleRef().elements()) flatten(element, to);
}

std::vector<at::Tensor> run(const std::string& path, const at::Tensor& input) {
  if (path.ends_with(".pt2")) return torch::inductor::AOTIModelPackageLoader(path).run({input});
  std::vector<at::Tensor> results;
  flatten(torch::jit::load(path).forward({input}), &results);
  return results;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 5) {
    std::cerr << "usage: " << arguments[0] << " LIBRARY MODEL INPUT OUTPUT\n";
    return 2;
  }
  if (!dlopen(arguments[1], RTLD_NOW | RTLD_GLOBAL)) {  // defines the operators of the layers
    std::cerr << dlerror() << '\n';
    return 1;
  }
  try {
    c10::InferenceMode inference;
    std::vector<at::Tensor> results = run(arguments[2], torch::jit::pickle_load(read(arguments[3])).toTensor());
    std::vector<char> bytes = torch::jit::pickle_save(c10::ivalue::Tuple::create({results.begin(), results.end()}));
    std::ofstream(arguments[4], std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    for (const at::Tensor& t : results) std::cout << t.sizes() << '\n';
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  return 0;
}
