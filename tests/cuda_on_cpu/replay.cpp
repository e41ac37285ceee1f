// replay POLICY SEED FILE...: makes the calls that layer.Call.write() wrote, every array in memory of exactly its size,
// so that a sanitizer sees the kernels and nothing else. With --write before the files, each comes back with all arrays
// as the call left them.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "driver.h"

namespace {

const char* replay(const char* path, bool writes) {
  std::ifstream file(path, std::ios::binary);
  std::string tier, cell;
  int type, tf32, backward;
  int64_t sizes[7];
  file >> tier >> cell >> type >> tf32 >> backward;
  for (int64_t& size : sizes) file >> size;
  std::vector<std::string> names;
  std::vector<void*> data;
  std::vector<size_t> sizes_of_data;
  std::string name;
  size_t bytes;
  while (file >> name >> bytes) {
    file.get();
    names.push_back(name);
    data.push_back(std::malloc(bytes));
    sizes_of_data.push_back(bytes);
    file.read(static_cast<char*>(data.back()), std::streamsize(bytes));
  }
  std::vector<const char*> pointers;
  for (const std::string& n : names) pointers.push_back(n.c_str());
  if (tier == "-") tier.clear();
  const Call call{cell.c_str(), tier.c_str(),    type,       tf32, backward, int(names.size()),
                  sizes,        pointers.data(), data.data()};
  const char* error = run_layer(&call);
  if (writes && !error) {
    std::ofstream results(path, std::ios::binary);
    for (size_t i = 0; i < data.size(); ++i)
      results.write(static_cast<char*>(data[i]), std::streamsize(sizes_of_data[i]));
  }
  for (void* array : data) std::free(array);
  return error;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: replay POLICY SEED FILE...\n");
    return 2;
  }
  set_patience(120);
  set_schedule(std::atoi(argv[1]), std::strtoull(argv[2], nullptr, 10));
  bool writes = std::string(argv[3]) == "--write";
  for (int i = 3 + writes; i < argc; ++i)
    if (const char* error = replay(argv[i], writes)) {
      std::cerr << argv[i] << ": " << error << '\n';
      return 1;
    }
}
