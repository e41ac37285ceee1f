// Loops of nothing but multiplications or reads, which roofline.py compiles for the processor it runs on, and times.
#include <immintrin.h>

#include <cstdint>

#if defined(__AVX512F__)
constexpr int kBytes = 64, kSums = 24;  // of 32 registers
#elif defined(__AVX__)
constexpr int kBytes = 32, kSums = 12;  // of 16 registers
#else
constexpr int kBytes = 16, kSums = 12;
#endif
typedef float V __attribute__((vector_size(kBytes)));

// Hides from the compiler what is in a register, so that it can neither drop nor merge operations.
static inline void hide(V& value) { asm volatile("" : "+v"(value)); }

// Independent sums, enough of them to hide the latency. Returns the number of multiply-adds.
template <class F>
static double multiply(int64_t turns, F&& multiply_add) {
  V sum[kSums] = {}, a = sum[0] + 1, b = a;
  hide(a), hide(b);
  for (int64_t turn = 0; turn < turns; ++turn)
#pragma GCC unroll 32
    for (int i = 0; i < kSums; ++i) sum[i] = multiply_add(sum[i], a, b), hide(sum[i]);
  return double(turns) * kSums * (kBytes / sizeof(float));
}

extern "C" double multiply_floats(int64_t turns) {
  return multiply(turns, [](V sum, V a, V b) { return sum * a + b; });
}

extern "C" double multiply_bfloat16(int64_t turns) {  // 0 where the processor has no instruction for it
#if defined(__AVX512BF16__)
  return 2 * multiply(turns, [](V sum, V a, V b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); });
#else
  return 0 * turns;
#endif
}

// Reads so many bytes forwards and then backwards: each cache level serves what it still holds. Returns the bytes.
extern "C" double read_twice(const V* data, int64_t bytes, int64_t passes) {
  constexpr int64_t kStep = 8;
  const int64_t blocks = bytes / kBytes / kStep;
  V sum[kStep] = {};
  for (int64_t pass = 0; pass < 2 * passes; ++pass)
    for (int64_t block = 0; block < blocks; ++block) {
      const V* from = data + (pass % 2 ? blocks - 1 - block : block) * kStep;
#pragma GCC unroll 8
      for (int i = 0; i < kStep; ++i) sum[i] += from[i];
    }
#pragma GCC unroll 8
  for (int i = 0; i < kStep; ++i) hide(sum[i]);
  return 2.0 * passes * blocks * kStep * kBytes;
}
