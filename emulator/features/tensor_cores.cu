// Tensor cores: d [16, 8] = a [16, K] b [K, 8] of small integers, which every type holds exactly.
#include "features.h"

using namespace fusedrnn;
using namespace fusedrnn::device;

namespace {

float a_value(int m, int k) { return float((m * 7 + k * 3) % 11 - 5); }
float b_value(int k, int n) { return float((k * 5 + n * 2) % 13 - 6); }
bool is_product(const Floats& d, int rows, int K) {
  return int(d.size()) == rows * 8 && equal(d, [&](int i) {
           float sum = 0;
           for (int k = 0; k < K; ++k) sum += a_value(i / 8, k) * b_value(k, i % 8);
           return sum;
         });
}

template <class T>
__global__ void multiply_16(float* d) {  // a through ldmatrix, b as two values at a time of its transpose
  Carver carver(shared_memory());
  T *a = carver.take<T>(16 * 24), *bt = carver.take<T>(8 * 24);
  int lane = threadIdx.x;
  for (int i = lane; i < 16 * 16; i += 32) a[i / 16 * 24 + i % 16] = narrow<T>(a_value(i / 16, i % 16));
  for (int i = lane; i < 16 * 8; i += 32) bt[i % 8 * 24 + i / 8] = narrow<T>(b_value(i / 8, i % 8));
  __syncwarp();
  uint32_t ra[4], rb[2];
  ldmatrix_x4(ra, a + lane % 16 * 24 + lane / 16 * 8);
  for (int v = 0; v < 2; ++v) rb[v] = load_as<uint32_t>(bt + lane / 4 * 24 + lane % 4 * 2 + v * 8);
  float sum[4] = {};
  mma_m16n8k16<T>(sum, ra, rb);
  for (int v = 0; v < 4; ++v) d[(lane / 4 + v / 2 * 8) * 8 + lane % 4 * 2 + v % 2] = sum[v];
}
template <class T>
bool mma_16() {
  Floats d(16 * 8);
  launch({.grid = 1, .block = 32, .shared_bytes = 2 * (16 * 24 + 8 * 24)}, &multiply_16<T>, d.data());
  return is_product(d, 16, 16);
}

__global__ void multiply_tf32(float* d) {
  int lane = threadIdx.x, g = lane / 4, i = lane % 4;
  uint32_t a[4], b[2];
  for (int v = 0; v < 4; ++v) a[v] = to_tf32(a_value(g + v % 2 * 8, i + v / 2 * 4));
  for (int v = 0; v < 2; ++v) b[v] = to_tf32(b_value(i + v * 4, g));
  float sum[4] = {};
  mma_m16n8k8_tf32(sum, a, b);
  for (int v = 0; v < 4; ++v) d[(g + v / 2 * 8) * 8 + i * 2 + v % 2] = sum[v];
}
bool mma_tf32() {
  Floats d(16 * 8);
  launch({.grid = 1, .block = 32}, &multiply_tf32, d.data());
  return is_product(d, 16, 8);
}

template <int kStride>
__global__ void read_matrix(uint32_t* out) {
  uint16_t* s = Carver(shared_memory()).take<uint16_t>(16 * kStride);
  for (int i = threadIdx.x; i < 16 * kStride; i += 32) s[i] = 0;
  __syncwarp();
  uint32_t r[4];
  ldmatrix_x4(r, s + threadIdx.x % 16 * kStride + threadIdx.x / 16 * 8);
  out[threadIdx.x] = r[0];
}
template <int kStride>
bool bank_conflicts() {  // "right" if there are none
  std::vector<uint32_t> out(32);
  emulator::counts = {};
  launch({.grid = 1, .block = 32, .shared_bytes = 32 * kStride}, &read_matrix<kStride>, out.data());
  return emulator::counts.matrix_reads == 4 && emulator::counts.matrix_conflicts == 0;
}

}  // namespace

Features tensor_core_features() {
  return {
      {"mma_bfloat16", mma_16<bfloat16>},
      {"mma_float16", mma_16<float16>},
      {"mma_tf32", mma_tf32},
      {"matrix_without_conflicts", bank_conflicts<24>},
      {"matrix_with_conflicts", bank_conflicts<32>},
  };
}
