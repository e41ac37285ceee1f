// Small kernels, right and wrong ones, that show what the emulator sees: tests/test_emulator.py says what that shall
// be. A feature launches its kernel once and returns whether the values are right.
#pragma once

#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cuda/device.cuh"

using Features = std::map<std::string, bool (*)()>;
Features block_features();
Features tensor_core_features();
Features grid_features();
Features cluster_features();

using Floats = std::vector<float>;

inline bool equal(const Floats& values, const std::function<float(int)>& expected) {
  for (size_t i = 0; i < values.size(); ++i)
    if (values[i] != expected(int(i))) return false;
  return true;
}
