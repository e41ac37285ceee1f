// How fast this processor multiplies, and how fast it reads: loops of nothing else, with the vectors of the kernels.
// roof.py compiles this for the processor it runs on.
#include <algorithm>
#include <chrono>

#include "cpu/isa.h"

#define FUSEDRNN_ISA native
#if defined(__AVX512F__)
#define FUSEDRNN_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define FUSEDRNN_VECTOR_BYTES 32
#else
#define FUSEDRNN_VECTOR_BYTES 16
#endif
#if defined(__AVX512BF16__)
#define FUSEDRNN_DOT_PRODUCTS
#endif
#include "cpu/gemm.h"

namespace {

using namespace fusedrnn::native;

// What is computed is wanted.
template <class S, int N>
FUSEDRNN_FN void use(const Vec<S> (&values)[N]) {
  Vec<S> sum = values[0];
#pragma GCC unroll 32
  for (int i = 1; i < N; ++i) sum = sum + values[i];
  S lanes[Vec<S>::kLanes];
  sum.store(lanes);
  volatile S sink = lanes[0];
  static_cast<void>(sink);
}

// The best rate of some samples: work a second.
template <class F>
double best(double seconds, F&& sample) {
  using Clock = std::chrono::steady_clock;
  auto since = [](Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); };
  double rate = 0;
  for (auto begin = Clock::now(); since(begin) < seconds;) {
    auto start = Clock::now();
    double work = sample();
    rate = std::max(rate, work / since(start));
  }
  return rate;
}

// As many sums side by side as the register tile has, in operations of two for each lane, or four. The compiler is not
// to know what is multiplied, nor that any two sums are the same.
template <class S, bool Pairs>
double multiply_add(double seconds) {
  using V = Vec<S>;
  constexpr int kSums = kTileRows * kPanelVectors, kTurns = 1 << 14;
  return best(seconds, [] {
    volatile S one = 1;
    V sum[kSums], a(one), b(one);
#pragma GCC unroll 32
    for (int i = 0; i < kSums; ++i) sum[i] = V(S(i));
    for (int turn = 0; turn < kTurns; ++turn)
#pragma GCC unroll 32
      for (int i = 0; i < kSums; ++i) {
        if constexpr (Pairs)
          sum[i] = add_dot(sum[i], a, b);
        else
          sum[i] = sum[i] * a + b;
        V::keep(sum[i]);
      }
    use(sum);
    return (Pairs ? 4.0 : 2.0) * V::kLanes * kSums * kTurns;
  });
}

}  // namespace

// Operations a second of one thread: of floats, of doubles, and of pairs of bfloat16 (0: this processor has none).
extern "C" double roof_of_floats(double seconds) { return multiply_add<float, false>(seconds); }
extern "C" double roof_of_doubles(double seconds) { return multiply_add<double, false>(seconds); }
extern "C" double roof_of_pairs(double seconds) { return kDotProducts ? multiply_add<float, true>(seconds) : 0; }

// Bytes a second of one thread that reads so many bytes again and again, forth and back in turns: it finds in each
// cache what that kept.
extern "C" double roof_of_reads(double seconds, int64_t bytes) {
  using V = Vec<float>;
  constexpr int kStep = 8;
  int64_t blocks = std::max<int64_t>(bytes / sizeof(V) / kStep, 1);
  fusedrnn::Buffer<float> data(blocks * kStep * V::kLanes);
  std::fill_n(static_cast<float*>(data), blocks * kStep * V::kLanes, 1.0f);
  bool back = false;
  return best(seconds, [&] {
    V sum[kStep];
#pragma GCC unroll 8
    for (int i = 0; i < kStep; ++i) sum[i] = V(0);
    int64_t passes = 1 + (1 << 20) / (blocks * kStep * static_cast<int64_t>(sizeof(V)));
    for (int64_t pass = 0; pass < passes; ++pass, back = !back)
      for (int64_t block = 0; block < blocks; ++block) {
        const float* from = data + (back ? blocks - 1 - block : block) * kStep * V::kLanes;
#pragma GCC unroll 8
        for (int i = 0; i < kStep; ++i) sum[i] = sum[i] + V::load(from + i * V::kLanes);
      }
    use(sum);
    return static_cast<double>(passes) * blocks * kStep * sizeof(V);
  });
}
