// The drivers of csrc/scan.h as C functions, for ctypes and replay.cpp.
#include "driver.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../test_cells.h"
#include "arrays.h"
#include "cuda/plan.h"
#include "emulator.h"
#include "scan.h"

namespace {

using namespace fusedrnn;

constexpr int kNoKernels = -2;  // of this cell and type

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

template <class Cell, class T>
int run(bool tf32, const std::string& tier, bool backward, const Shape& shape, const Arrays& arrays,
        std::string* plan_text) {
  const emulator::Device all = emulator::config.device;
  std::unique_ptr<void, Free> scratch;
  auto allocate = [&](size_t bytes) {  // as torch does: aligned, full of what was there
    constexpr size_t kAlignment = 256;
    bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    scratch.reset(std::aligned_alloc(kAlignment, bytes));
    std::memset(scratch.get(), 0xff, bytes);
    return scratch.get();
  };
  const ScanParams<T> params = params_of<T>(shape, arrays);
  const Device device{all.multiprocessors, all.shared_bytes, all.capability};
  Plan plan;
  const int error =
      run_planned({backward, traits_of<Cell>(), shape, sizeof(T)}, device, tier, &plan, [&](const Plan& p) {
        const CudaRun run{p, tf32, nullptr, allocate};
        emulator::config.device.shared_bytes = static_cast<int>(p.shared_bytes);  // more than was planned is refused
        const CudaDriver<T> driver = cuda_driver<Cell, T>();
        const int error = backward ? driver.backward(params, grads_of<T>(arrays), run) : driver.forward(params, run);
        emulator::config.device = all;
        return error;
      });
  *plan_text = std::string(kTierNames[static_cast<int>(plan.tier)]) + ", " + std::to_string(plan.groups) + " groups, " +
               std::to_string(plan.blocks) + " blocks, " + std::to_string(plan.row_tiles) + " row tiles, " +
               std::to_string(plan.replicas) + " replicas";
  return error;
}

// Calls f with a value of the type of this number.
template <class... T, class F>
int with_type(int number, F&& f) {
  int result = kNoKernels;
  auto try_one = [&]<class E>(E value) {
    constexpr int kNumber = std::is_same_v<E, float>      ? 0
                            : std::is_same_v<E, double>   ? 1
                            : std::is_same_v<E, bfloat16> ? 2
                                                          : 3;
    if (number == kNumber) result = f(value);
  };
  (try_one(T{}), ...);
  return result;
}
#ifndef DRIVER_TYPES
#define DRIVER_TYPES float, double, bfloat16, float16
#endif

thread_local std::string plan_text, error_text;

}  // namespace

const char* run_layer(const Call* call) {
  Arrays arrays(call->count, call->names, call->data);
  Shape shape = shape_of(call->sizes);
  emulator::clear_report();
  int error = 0;
  try {
    error = with_type<DRIVER_TYPES>(call->type, [&](auto value) {
      using T = decltype(value);
      using Cells = std::conditional_t<std::is_same_v<T, double>, AllCells, BuiltInCells>;
      int result = kNoKernels;
      with_cell(Cells{}, call->cell, [&](auto kind) {
        result = run<decltype(kind), T>(call->tf32, call->tier, call->backward, shape, arrays, &plan_text);
      });
      return result;
    });
  } catch (const std::invalid_argument& refusal) {
    error_text = refusal.what();
    return error_text.c_str();
  }
  if (error == 0 && emulator::report().empty()) return nullptr;
  error_text = "error " + std::to_string(error) + " (" + plan_text + "): " + emulator::report();
  return error_text.c_str();
}

const char* last_plan() { return plan_text.c_str(); }

void set_schedule(int policy, uint64_t seed) {
  emulator::config.policy = static_cast<emulator::Policy>(policy);
  emulator::config.seed = seed;
}

void set_patience(double seconds) { emulator::config.watchdog_seconds = seconds; }

void set_device(int multiprocessors, int shared_bytes, int capability, int taken) {
  emulator::config.device = {multiprocessors, shared_bytes, capability, taken};
}

void cell_step(const char* cell, int backward, int64_t count, const double* const* in, double* const* state,
               double* const* out) {
  with_cell(AllCells{}, cell, [&](auto kind) {
    using Cell = decltype(kind);
    constexpr int G = Cell::kGates, S = Cell::kStates, A = Cell::kSaved, Q = Cell::kGrads;
    for (int64_t i = 0; i < count; ++i) {
      double a[A > G ? A : G], b[G > S ? G : S], s[S], o[A > Q ? A : Q];
      const int first = backward ? A : G, second = backward ? S : G;
      for (int k = 0; k < first; ++k) a[k] = in[k][i];
      for (int k = 0; k < second; ++k) b[k] = in[first + k][i];
      for (int k = 0; k < S; ++k) s[k] = state[k][i];
      backward ? Cell::backward(a, b, s, o) : Cell::forward(a, b, s, o);
      for (int k = 0; k < S; ++k) state[k][i] = s[k];
      for (int k = 0; k < (backward ? Q : A); ++k) out[k][i] = o[k];
    }
  });
}
