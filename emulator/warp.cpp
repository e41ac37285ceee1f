// Operations of a whole warp: every lane brings an argument and a place for its result, the last to come computes all.
#include <bit>
#include <cstring>

#include "sanitizers.h"
#include "scheduler.h"

namespace emulator {
namespace {

constexpr uint32_t kAllLanes = 0xffffffff;

void gather(const char* kind, uint32_t mask, const void* in, void* out, void (*compute)(WarpOperation&),
            bool orders_memory, Site site) {
  Thread* self = machine.running;
  WarpOperation& warp = self->block->warps[self->warp];
  ++counts.warp_operations;
  if (mask != kAllLanes) fail(std::string(kind) + " does not name all lanes", site);
  if (warp.arrived &&
      (std::strcmp(warp.kind, kind) || warp.site.line != site.line || std::strcmp(warp.site.file, site.file)))
    fail(std::string("divergent warp: other lanes wait in ") + warp.kind + " at " + place(warp.site) +
             ", this one came to " + kind,
         site);
  if (!warp.arrived) {
    warp.kind = kind;
    warp.site = site;
    ++warp.phase;
  }
  const void* token = &warp.tokens[warp.phase & 1];
  if (orders_memory) release(token);
  warp.arrived |= 1u << self->lane;
  warp.in[self->lane] = in;
  warp.out[self->lane] = out;
  warp.lanes[self->lane] = self;
  if (warp.arrived == kAllLanes) {
    if (compute) compute(warp);
    warp.arrived = 0;
    for (Thread* lane : warp.lanes)
      if (lane != self) make_ready(lane);
    if (hostile() && random_below(8) == 0) yield();
  } else {
    wait(kind, site);
  }
  if (orders_memory) acquire(token);
}

struct ShuffleArgument {
  Shuffle kind;
  uint64_t value;
  int lane, width;
};

int source(const ShuffleArgument& argument, int lane) {
  int first = lane & ~(argument.width - 1), end = first + argument.width;
  switch (argument.kind) {
    case Shuffle::kIndex:
      return first + (argument.lane & (argument.width - 1));
    case Shuffle::kUp:
      return lane - argument.lane < first ? lane : lane - argument.lane;
    case Shuffle::kDown:
      return lane + argument.lane >= end ? lane : lane + argument.lane;
    case Shuffle::kXor:
      break;
  }
  return (lane ^ argument.lane) >= end ? lane : lane ^ argument.lane;
}

void compute_shuffle(WarpOperation& warp) {
  for (int lane = 0; lane < 32; ++lane) {
    auto& argument = *static_cast<const ShuffleArgument*>(warp.in[lane]);
    auto& from = *static_cast<const ShuffleArgument*>(warp.in[source(argument, lane)]);
    *static_cast<uint64_t*>(warp.out[lane]) = from.value;
  }
}

// ---- tensor cores, with the fragments of the PTX manual

template <Mma kKind>
float value(uint32_t bits) {
  if (kKind == Mma::kTf32) return std::bit_cast<float>(bits & 0xffffe000u);  // the hardware ignores the rest
  if (kKind == Mma::kBfloat16) return std::bit_cast<float>(bits << 16);
  return static_cast<float>(std::bit_cast<Half>(static_cast<uint16_t>(bits)));
}

struct MmaArgument {
  const uint32_t *a, *b;
};

template <Mma kKind>
void compute_mma(WarpOperation& warp) {
  constexpr int K = kKind == Mma::kTf32 ? 8 : 16;
  constexpr int kPacked = kKind == Mma::kTf32 ? 1 : 2;  // values in a register
  float a[16][K], b[K][8], d[16][8] = {};
  for (int lane = 0; lane < 32; ++lane) {
    auto& argument = *static_cast<const MmaArgument*>(warp.in[lane]);
    int g = lane / 4, i = lane % 4;
    for (int v = 0; v < 4; ++v)
      for (int p = 0; p < kPacked; ++p)
        a[g + 8 * (v % 2)][i * kPacked + p + K / 2 * (v / 2)] = value<kKind>(argument.a[v] >> 16 * p);
    for (int v = 0; v < 2; ++v)
      for (int p = 0; p < kPacked; ++p) b[i * kPacked + p + K / 2 * v][g] = value<kKind>(argument.b[v] >> 16 * p);
  }
  for (int m = 0; m < 16; ++m)
    for (int k = 0; k < K; ++k)
      for (int n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
  for (int lane = 0; lane < 32; ++lane)
    for (int v = 0; v < 4; ++v)
      static_cast<float*>(warp.out[lane])[v] += d[lane / 4 + 8 * (v / 2)][lane % 4 * 2 + v % 2];
}

// ---- ldmatrix

constexpr int kMatrices = 4;

void count_bank_conflicts(const WarpOperation& warp) {
  for (int q = 0; q < kMatrices; ++q) {
    unsigned groups = 0;  // of four banks, of which a row takes one
    for (int row = 8 * q; row < 8 * q + 8; ++row) groups |= 1u << (reinterpret_cast<uintptr_t>(warp.in[row]) / 16 % 8);
    ++counts.matrix_reads;
    counts.matrix_conflicts += 8 - __builtin_popcount(groups);
  }
}

void compute_ldmatrix(WarpOperation& warp) {
  count_bank_conflicts(warp);
  for (int lane = 0; lane < 32; ++lane)
    for (int q = 0; q < kMatrices; ++q)
      std::memcpy(static_cast<uint32_t*>(warp.out[lane]) + q,
                  static_cast<const uint32_t*>(warp.in[8 * q + lane / 4]) + lane % 4, sizeof(uint32_t));
}

}  // namespace

void warp_barrier(uint32_t mask, Site site) { gather("__syncwarp", mask, nullptr, nullptr, nullptr, true, site); }

uint64_t shuffle(Shuffle kind, uint32_t mask, uint64_t value, int lane, int width, Site site) {
  ShuffleArgument argument{kind, value, lane, width};
  uint64_t result;
  gather("__shfl_sync", mask, &argument, &result, compute_shuffle, false, site);
  return result;
}

void mma(Mma kind, float* d, const uint32_t* a, const uint32_t* b, Site site) {
  MmaArgument argument{a, b};
  if (kind == Mma::kTf32)
    gather("mma_m16n8k8_tf32", kAllLanes, &argument, d, compute_mma<Mma::kTf32>, false, site);
  else if (kind == Mma::kBfloat16)
    gather("mma_m16n8k16<bfloat16>", kAllLanes, &argument, d, compute_mma<Mma::kBfloat16>, false, site);
  else
    gather("mma_m16n8k16<float16>", kAllLanes, &argument, d, compute_mma<Mma::kFloat16>, false, site);
}

void ldmatrix_x4(uint32_t* registers, const void* row, Site site) {
  constexpr size_t kRowBytes = 16;
  auto begin = static_cast<const unsigned char*>(row);
  const Block& block = *machine.running->block;
  if (reinterpret_cast<uintptr_t>(row) % kRowBytes) fail("a row of ldmatrix is misaligned", site);
  if (begin < block.shared || begin + kRowBytes > block.shared + block.shared_bytes)
    fail("a row of ldmatrix is not in this block's shared memory", site);
  reads(row, kRowBytes);
  gather("ldmatrix", kAllLanes, row, registers, compute_ldmatrix, false, site);
}

}  // namespace emulator
