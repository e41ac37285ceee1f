// Runs CUDA kernels on the CPU, for tests. Every CUDA thread is a fiber, all on one thread of the process, and a fiber
// gives way only where threads synchronise. What CUDA leaves open is decided against the kernel: see Policy, and
// README.md for the rest. This is what emulated_device.h is made of; the rooms behind it are machine.h, scheduler.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

// CUDA's own names, as nvcc gives them without an include.
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static_assert(false, "shared memory comes from device::shared_memory()")
#define __constant__ static_assert(false, "the emulator has no constant memory")

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr size_t count() const { return size_t(x) * y * z; }
  unsigned x, y, z;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};

// Of the thread that runs: the scheduler sets them at every switch.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace emulator {

#ifdef __aarch64__
using Half = __fp16;
#else
using Half = _Float16;
#endif

enum class Policy : int {
  kRoundRobin,  // in order, each until it waits
  kReverse,     // the last to become ready first
  kRandom,      // any that is ready
  kPriority,    // by random priorities that change now and then: blocks and warps far ahead of others
};

struct Device {
  int multiprocessors = 132;
  int shared_bytes = 232448;  // 227 KiB: the most one block may have; a multiprocessor has 1 KiB more
  int capability = 90;        // 90 for compute capability 9.0
  int taken = 0;              // multiprocessors that others hold: what asks for room finds out
};

struct Config {
  Policy policy = Policy::kRandom;
  uint64_t seed = 1;
  double watchdog_seconds = 0;  // aborts where a thread stays away from the scheduler: it spins on plain memory
  Device device;
};

struct Counts {
  uint64_t threads, switches, barriers, warp_operations, copies, polls;
  uint64_t matrix_reads, matrix_conflicts;  // 8-row phases of ldmatrix; rows in them that hit a bank twice
};

extern Config config;
extern Counts counts;

// CUDA's error codes, as far as launches return them.
enum Error : int {
  kSuccess = 0,
  kInvalidValue = 1,
  kInvalidConfiguration = 9,
  kLaunchFailure = 719,
  kCooperativeLaunchTooLarge = 720,
};

struct Launch {
  dim3 grid, block;
  unsigned cluster = 1;
  size_t shared_bytes = 0;
  bool cooperative = false;
  void* stream = nullptr;
};

// Runs body(args) in every thread. What went wrong is said by report(), until the next call of clear_report().
Error run(const Launch& launch, void (*body)(void*), void* args);
const std::string& report();
void clear_report();

int resident_blocks(const Launch& launch);  // that run at once on the whole device

// Where in the kernel's source something happens: the last, defaulted argument of what kernels call.
struct Site {
  const char* file = nullptr;
  int line = 0;
};
#define EMULATOR_SITE const char *site_file = __builtin_FILE(), int site_line = __builtin_LINE()
#define EMULATOR_HERE \
  ::emulator::Site { site_file, site_line }

// Ends the launch with a message. From here on: only for threads of a kernel.
[[noreturn]] void fail(const std::string& what, Site site);

// ---- flags in global memory. A load that may be spun on lets others run first; a store wakes those who spin.
void before_load(const void* p, Site site);
void before_store();
void after_store();

// ---- barriers
void block_barrier(Site site);
void grid_barrier(Site site);
void cluster_arrive(Site site);
void cluster_wait(Site site);
void mbarrier_init(uint64_t* barrier, unsigned count, Site site);
void mbarrier_init_fence();
void mbarrier_arrive_expect(uint64_t* barrier, unsigned bytes, Site site);
void mbarrier_wait(uint64_t* barrier, unsigned parity, Site site);

// ---- warps
enum class Shuffle { kIndex, kUp, kDown, kXor };
void warp_barrier(uint32_t mask, Site site);
uint64_t shuffle(Shuffle kind, uint32_t mask, uint64_t value, int lane, int width, Site site);

enum class Mma { kFloat16, kBfloat16, kTf32 };
void mma(Mma kind, float* d, const uint32_t* a, const uint32_t* b, Site site);
void ldmatrix_x4(uint32_t* registers, const void* row, Site site);

// ---- memory
unsigned char* shared_memory();
size_t red_zone(unsigned char* array,
                size_t bytes);  // bytes left free behind an array, out of bounds to AddressSanitizer
void copy_async(void* shared, const void* global, int bytes, bool valid, Site site);
void copy_async_commit();
void copy_async_wait(int groups);
void store_async(void* shared, uint64_t* barrier, unsigned rank, const void* value, Site site);  // 16 bytes

}  // namespace emulator
