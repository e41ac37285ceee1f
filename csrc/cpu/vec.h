// Vec: as many floats or doubles as one register holds, with the two transcendental functions the cells need.
//
// Compiled once per instruction set: FUSEDRNN_VECTOR_BYTES and FUSEDRNN_ISA come from the including .cpp. The
// arithmetic is the compiler's own vector extension, so every architecture has it.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../activations.h"
#include "instructions.h"

namespace fusedrnn::FUSEDRNN_ISA {

// exp(x) = 2^n e^f, n = round(x / ln 2), |f| <= ln 2 / 2, and e^f = 1 + f + f^2 series: of doubles Taylor's, of floats
// one fitted to these f, which needs a term less. What is left out is a tenth of an ulp at most. n + kRound is a number
// whose last bits are the exponent of 2^n: 0, which makes 2^n zero, from kLeast on and all ones, infinity, at kMost.
template <class S>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float kLeast = -88.0f, kMost = 89.0f, kRound = 0x1.8p23f + 127, kLog2e = 0x1.715476p0f;
  static constexpr float kLn2 = 0x1.62e43p-1f;
  static constexpr int kTerms = 5, kMantissa = 23;
  static constexpr float kSeries[] = {0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558bp-5f, 0x1.123988p-7f, 0x1.6a4ce4p-10f};
};
template <>
struct ExpConstants<double> {
  static constexpr double kLeast = -709.0, kMost = 710.0, kRound = 0x1.8p52 + 1023, kLog2e = 0x1.71547652b82fep0;
  static constexpr double kLn2 = 0x1.62e42fefa39efp-1;
  static constexpr int kTerms = 12, kMantissa = 52;
  static constexpr double kSeries[] = {1.0 / 2,       1.0 / 6,        1.0 / 24,        1.0 / 120,
                                       1.0 / 720,     1.0 / 5040,     1.0 / 40320,     1.0 / 362880,
                                       1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
};

template <class S>
struct Vec {
  static constexpr int kLanes = FUSEDRNN_VECTOR_BYTES / sizeof(S);
  using Scalar = S;
  using Raw = typename Register<S>::Raw;
  using Bits = typename Register<S>::Bits;

  Raw v;

  Vec() = default;
  FUSEDRNN_FN Vec(Raw raw) : v(raw) {}
  FUSEDRNN_FN explicit Vec(S scalar) : v(scalar - Raw{}) {}
  FUSEDRNN_FN explicit Vec(int scalar) : Vec(static_cast<S>(scalar)) {}

  template <class T>
  FUSEDRNN_FN static Vec load(const T* p);
  template <class T>
  FUSEDRNN_FN void store(T* p) const;
  // The first n lanes only, one at least; the others are zero.
  template <class T>
  FUSEDRNN_FN static Vec load(const T* p, int64_t n) {
    if (n >= kLanes) return load(p);
    T buffer[kLanes] = {};
    load_part(p, n, buffer);
    return load(buffer);
  }
  template <class T>
  FUSEDRNN_FN void store(T* p, int64_t n) const {
    if (n >= kLanes) return store(p);
    T buffer[kLanes];
    store(buffer);
    store_part(buffer, n, p);
  }

  // Lanes come in groups of Half. low_halves: a's even groups, each followed by b's even group of the same place;
  // high_halves: the same of the odd groups.
  template <int Half>
  FUSEDRNN_FN static Vec low_halves(Vec a, Vec b) {
    return pick<Half, 0>(a, b, std::make_integer_sequence<int, kLanes>{});
  }
  template <int Half>
  FUSEDRNN_FN static Vec high_halves(Vec a, Vec b) {
    return pick<Half, Half>(a, b, std::make_integer_sequence<int, kLanes>{});
  }

  FUSEDRNN_FN friend Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  FUSEDRNN_FN friend Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  FUSEDRNN_FN friend Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  FUSEDRNN_FN friend Vec operator/(Vec a, Vec b) { return quotient(a.v, b.v); }
  FUSEDRNN_FN friend Vec operator-(Vec a) { return -a.v; }
  FUSEDRNN_FN friend Bits operator<=(Vec a, Vec b) { return a.v <= b.v; }
  FUSEDRNN_FN friend Bits operator<(Vec a, Vec b) { return a.v < b.v; }
  FUSEDRNN_FN friend Bits operator==(Vec a, Vec b) { return a.v == b.v; }
  FUSEDRNN_FN friend Vec where(Bits mask, Vec a, Vec b) { return mask ? a.v : b.v; }

  // The larger and the smaller of two; NaN where b is.
  FUSEDRNN_FN static Vec max(Vec a, Vec b) { return larger(a.v, b.v); }
  FUSEDRNN_FN static Vec min(Vec a, Vec b) { return -max(-a, -b); }

  FUSEDRNN_FN static Vec minus_abs(Vec x) { return Raw((Bits)x.v | (Bits)(-Raw{})); }
  // of a magnitude without a sign
  FUSEDRNN_FN static Vec with_sign_of(Vec x, Vec magnitude) {
    return Raw((Bits)magnitude.v | ((Bits)x.v & (Bits)(-Raw{})));
  }

  // What is used several times stays in a register: GCC may read it from memory for each use.
  FUSEDRNN_FN static void keep(Vec& x) {
#ifdef __x86_64__
    asm("" : "+v"(x.v));
#endif
  }

  FUSEDRNN_FN static Vec reciprocal(Vec x) { return inverse(x.v); }

  // a / b, rounded once whatever they are.
  FUSEDRNN_FN static Vec quotient(Vec a, Vec b) { return a.v / b.v; }

  FUSEDRNN_FN static Vec square_root(Vec x) {
#if FUSEDRNN_VECTOR_BYTES == 64
    if constexpr (std::is_same_v<S, float>)
      return Raw(_mm512_sqrt_ps((__m512)x.v));
    else
      return Raw(_mm512_sqrt_pd((__m512d)x.v));
#elif FUSEDRNN_VECTOR_BYTES == 32
    if constexpr (std::is_same_v<S, float>)
      return Raw(_mm256_sqrt_ps((__m256)x.v));
    else
      return Raw(_mm256_sqrt_pd((__m256d)x.v));
#else
    for (int i = 0; i < kLanes; ++i) x.v[i] = std::sqrt(x.v[i]);
    return x;
#endif
  }

  // Of a normal number x = 2^n m: returns n and leaves m, from sqrt(1/2) to sqrt(2).
  FUSEDRNN_FN static Vec split_exponent(Vec& x) {
    constexpr bool kIsFloat = std::is_same_v<S, float>;
    constexpr auto kLeast = kIsFloat ? int64_t{0x3f3504f3} : int64_t{0x3fe6a09e667f3bcd};  // sqrt(1/2)
    using Int = std::remove_reference_t<decltype(Bits{}[0])>;
    Bits n = ((Bits)x.v - static_cast<Int>(kLeast)) >> ExpConstants<S>::kMantissa;
    x.v = (Raw)((Bits)x.v - (n << ExpConstants<S>::kMantissa));
    return __builtin_convertvector(n, Raw);
  }

  // 2^n, of n added to kRound.
  FUSEDRNN_FN static Vec power_of_two(Vec n) { return Raw((Bits)n.v << ExpConstants<S>::kMantissa); }

 private:
  template <int Half, int Odd, int... I>
  FUSEDRNN_FN static Vec pick(Vec a, Vec b, std::integer_sequence<int, I...>) {
    return shuffle<(((I & Half) ? kLanes + (I ^ Half) : I) + Odd)...>(a.v, b.v);
  }
};

template <class S>
template <class T>
FUSEDRNN_FN Vec<S> Vec<S>::load(const T* p) {
  Vec out;
  if constexpr (std::is_same_v<T, S>) {
    std::memcpy(&out.v, p, sizeof out.v);
  } else if constexpr (std::is_same_v<T, bool>) {
    typename Register<S>::Bytes bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    out.v = __builtin_convertvector(bytes, Raw);
  } else {
    Halves halves;
    std::memcpy(&halves, p, sizeof halves);
    out.v = widen(halves, T());
  }
  return out;
}

template <class S>
template <class T>
FUSEDRNN_FN void Vec<S>::store(T* p) const {
  if constexpr (std::is_same_v<T, S>) {
    std::memcpy(p, &v, sizeof v);
  } else {
    Halves halves = narrow(v, T());
    std::memcpy(p, &halves, sizeof halves);
  }
}

// exp(x) = 2^n (1 + part), x within [kLeast, kMost]. As f is added last, part is monotone in it: f^2 is too small for
// the series' own error to show.
template <class V>
struct SplitPower {
  V scale, part;
};

template <class V>
FUSEDRNN_FN SplitPower<V> split_power(V x) {
  using C = ExpConstants<typename V::Scalar>;
  V n = x * V(C::kLog2e) + V(C::kRound);
  V f = x - (n - V(C::kRound)) * V(C::kLn2);
  V series(C::kSeries[C::kTerms - 1]);
#pragma GCC unroll 16
  for (int k = C::kTerms - 2; k >= 0; --k) series = series * f + V(C::kSeries[k]);
  return {V::power_of_two(n), f + f * f * series};
}

// Max error 1 + |x| / 20 ulp (of doubles |x| / 3); 1 + 5/4 |x| where multiply-adds are not fused. What is less than the
// least normal number may be zero.
template <class V>
FUSEDRNN_FN V exp_of(V x) {
  using C = ExpConstants<typename V::Scalar>;
  auto p = split_power(V::max(V(C::kLeast), V::min(V(C::kMost), x)));
  return p.scale * (V(1) + p.part);
}

// tanh(|x|) = m / (1 + e), e = exp(-2 |x|), m = 1 - e without cancellation near zero. The quotient y is made good by
// what is left of m, (m - y) - y e, which knows nothing of the rounding of 1 + e: without that the error near 1 is 2
// ulp, and not every step monotone. m - y is exact. Max error 2 ulp; from e = 2^-25 on exactly 1.
template <class V>
FUSEDRNN_FN V tanh_of(V x) {
  using C = ExpConstants<typename V::Scalar>;
  auto p = split_power(V::max(V(C::kLeast), V::minus_abs(x + x)));
  V e = p.scale * (V(1) + p.part), m = (V(1) - p.scale) - p.scale * p.part;
  V r = V::reciprocal(V(1) + e), y = m * r;
  return V::with_sign_of(x, y + r * ((m - y) - y * e));
}

template <class S>
FUSEDRNN_FN Vec<S> exp(Vec<S> x) {
  return exp_of(x);
}
template <class S>
FUSEDRNN_FN Vec<S> tanh(Vec<S> x) {
  return tanh_of(x);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
