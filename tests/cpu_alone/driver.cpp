// The CPU kernels as C functions, with the interface of ../cuda_on_cpu/driver.h: a tier is one of the instruction sets
// of kernels.h, a policy a number of threads.
#include "../cuda_on_cpu/driver.h"

#include <ATen/Parallel.h>

#include <chrono>
#include <cstdlib>
#include <exception>
#include <functional>
#include <string>
#include <thread>

#include "../cuda_on_cpu/arrays.h"
#include "../test_cells.h"
#include "kernels.h"

using namespace fusedrnn;

extern "C" {
// of mutation.py; there is none in kernels without mutants
__attribute__((weak)) extern bool watches_mutants;
}

namespace {

thread_local std::string error_text;
uint64_t pauses_seed = 0;

// Runs the kernels of driver_of(cell); false if Cells has none of this name.
template <class T, class Cells, class F>
bool run(const char* cell, bool backward, const Shape& shape, const Arrays& arrays, F&& driver_of) {
  const ScanParams<T> params = params_of<T>(shape, arrays);
  return with_cell(Cells{}, cell, [&](auto kind) {
    const CpuDriver<T> driver = driver_of(kind);
    backward ? driver.backward(params, grads_of<T>(arrays)) : driver.forward(params);
  });
}

// The kernels that are compiled here, and what they are called with.
struct Build {
  const char* isa;
  int type;
  bool (*run)(const Call& call, const Shape& shape, const Arrays& arrays);
};

template <class T, class Cells, class Driver>
constexpr Build build(const char* isa, int type, Driver) {
  return {isa, type, [](const Call& call, const Shape& shape, const Arrays& arrays) {
            return run<T, Cells>(call.cell, call.backward, shape, arrays, Driver{});
          }};
}

constexpr Build kBuilds[] = {
    build<float, AllCells>("wide", 0, [](auto cell) { return wide::driver<decltype(cell), float>(); }),
    build<bfloat16, BuiltInCells>("wide", 2, [](auto cell) { return wide::driver<decltype(cell), bfloat16>(); }),
    build<double, AllCells>("narrow", 1, [](auto cell) { return narrow_vectors::driver<decltype(cell), double>(); }),
    build<float16, BuiltInCells>("narrow", 3,
                                 [](auto cell) { return narrow_vectors::driver<decltype(cell), float16>(); }),
    build<bfloat16, BuiltInCells>("dot-products", 2,
                                  [](auto cell) { return dot_products::driver<decltype(cell), bfloat16>(); }),
#ifdef FUSEDRNN_ARM_ISAS
    build<bfloat16, BuiltInCells>("neon-bf16", 2,
                                  [](auto cell) { return neon_bf16::driver<decltype(cell), bfloat16>(); }),
#endif
};

}  // namespace

const char* run_layer(const Call* call) {
  const Arrays arrays(call->count, call->names, call->data);
  const Shape shape = shape_of(call->sizes);
  try {
    for (const Build& build : kBuilds)
      if (std::string_view(build.isa) == call->tier && build.type == call->type)
        return build.run(*call, shape, arrays) ? nullptr : "not compiled";
  } catch (const std::exception& error) {
    error_text = error.what();
    return error_text.c_str();
  }
  return "not compiled";
}

// Of -n threads that are asked for one does not come. With a seed, a thread pauses by chance where it comes by a mutant
// for the 1st, 2nd, 4th, 8th, ... time, so that the threads of a team are never long where one would expect them.
void set_schedule(int threads, uint64_t seed) {
  stand_in::threads = threads < 0 ? -threads : threads;
  stand_in::most = threads < 0 ? -threads - 1 : threads;
  pauses_seed = seed;
  const char* active = std::getenv("MUTANT");
  if (&watches_mutants) watches_mutants = seed != 0 || !active || std::atoi(active) == 0;
}

void set_patience(double) {}

void pause_by_chance(int number) {
  constexpr int kSome = 2048;
  thread_local uint32_t visits[kSome] = {};
  thread_local uint64_t random =
      pauses_seed * 0x9e3779b97f4a7c15u + std::hash<std::thread::id>()(std::this_thread::get_id());
  if (pauses_seed == 0) return;
  const uint32_t visit = ++visits[number % kSome];
  if (visit & (visit - 1)) return;
  random ^= random << 13, random ^= random >> 7, random ^= random << 17;
  if (random % 16 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random / 16 % 64));
}
