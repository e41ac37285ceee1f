// features NAME POLICY SEEDS: launches NAME under that many schedules of that policy and prints, for each, "right",
// "wrong" or the emulator's report. Without arguments: the names.
#include <cstdio>
#include <cstdlib>

#include "features.h"

int main(int argc, char** argv) {
  Features features;
  for (auto room : {block_features, tensor_core_features, grid_features, cluster_features}) features.merge(room());
  if (argc != 4 || !features.count(argv[1])) {
    for (const auto& [name, run] : features) std::puts(name.c_str());
    return argc == 1 ? 0 : 2;
  }
  emulator::config.policy = static_cast<emulator::Policy>(std::atoi(argv[2]));
  for (int seed = 1; seed <= std::atoi(argv[3]); ++seed) {
    emulator::config.seed = seed;
    emulator::clear_report();
    bool right = features.at(argv[1])();
    std::string report = emulator::report();
    std::puts(!report.empty() ? report.substr(0, report.find("\n  schedule")).c_str() : right ? "right" : "wrong");
  }
}
