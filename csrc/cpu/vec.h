// Vec: as many floats or doubles as one register holds, with the two transcendental functions the cells need.
//
// Compiled once per instruction set: FUSEDRNN_VECTOR_BYTES and FUSEDRNN_ISA come from the including .cpp. The
// arithmetic is the compiler's own vector extension, so every architecture has it; intrinsics are for conversions and
// for what they do faster.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../activations.h"
#include "../scan.h"

namespace fusedrnn::FUSEDRNN_ISA {

#if FUSEDRNN_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

// Scalar conversions between storage and arithmetic.

FUSEDRNN_FN float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
FUSEDRNN_FN uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

FUSEDRNN_FN float widen(float x) { return x; }
FUSEDRNN_FN double widen(double x) { return x; }
FUSEDRNN_FN float widen(bfloat16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }
FUSEDRNN_FN float widen(float16 x) {
  uint32_t magnitude = (x.bits & 0x7fffu) << 13, sign = (x.bits & 0x8000u) << 16;
  if (magnitude >= 0x7c00u << 13) return from_bits(magnitude | 0x7f800000u | sign);  // infinity, NaN
  return from_bits(to_bits(from_bits(magnitude) * 0x1p112f) | sign);                 // exact, subnormals too
}

// Round to nearest, ties to even.
template <class T>
FUSEDRNN_FN T narrow(double x) {
  return static_cast<T>(x);
}
template <>
FUSEDRNN_FN float16 narrow<float16>(double wide) {
  float x = static_cast<float>(wide);
  uint32_t bits = to_bits(x), sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  uint32_t half;
  if (bits > 0x7f800000u) {
    half = 0x7e00u;
  } else if (bits >= 0x477ff000u) {  // 65520: rounds to infinity
    half = 0x7c00u;
  } else if (bits < 0x38800000u) {  // subnormal: 0.5 has the same ulp, so the addition rounds
    half = to_bits(from_bits(bits) + 0.5f) - to_bits(0.5f);
  } else {
    half = (bits - (112u << 23) + 0xfffu + ((bits >> 13) & 1u)) >> 13;
  }
  return {static_cast<uint16_t>(half | sign)};
}

#define FUSEDRNN_REGISTER(type, name, bytes) typedef type name __attribute__((vector_size(bytes)))
template <class S>
struct Register;
template <>
struct Register<float> {
  FUSEDRNN_REGISTER(float, Raw, FUSEDRNN_VECTOR_BYTES);
  FUSEDRNN_REGISTER(int32_t, Bits, FUSEDRNN_VECTOR_BYTES);
  FUSEDRNN_REGISTER(uint32_t, Unsigned, FUSEDRNN_VECTOR_BYTES);
  FUSEDRNN_REGISTER(uint16_t, Half, FUSEDRNN_VECTOR_BYTES / 2);
  FUSEDRNN_REGISTER(uint8_t, Bytes, FUSEDRNN_VECTOR_BYTES / 4);
};
template <>
struct Register<double> {
  FUSEDRNN_REGISTER(double, Raw, FUSEDRNN_VECTOR_BYTES);
  FUSEDRNN_REGISTER(int64_t, Bits, FUSEDRNN_VECTOR_BYTES);
  FUSEDRNN_REGISTER(uint8_t, Bytes, FUSEDRNN_VECTOR_BYTES / 8);
};
#undef FUSEDRNN_REGISTER

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
  // The first n lanes only, one at least; the others are zero. With AVX-512 `buffer` stays in a register: what is
  // written to memory in bytes and read as a vector waits for all of them (LSTM, H=40 and 20: a backward pass takes
  // 0.91 and 0.74 of its time). The sanitizer does not look into masked accesses.
  template <class T>
  FUSEDRNN_FN static Vec load(const T* p, int64_t n) {
    if (n >= kLanes) return load(p);
    T buffer[kLanes] = {};
#if FUSEDRNN_VECTOR_BYTES == 64 && !defined(__SANITIZE_ADDRESS__)
    __m512i bytes = _mm512_maskz_loadu_epi8(_bzhi_u64(~uint64_t{0}, n * sizeof(T)), p);
    std::memcpy(static_cast<void*>(buffer), &bytes, sizeof buffer);
#else
    std::memcpy(static_cast<void*>(buffer), p, n * sizeof(T));
#endif
    return load(buffer);
  }
  template <class T>
  FUSEDRNN_FN void store(T* p, int64_t n) const {
    if (n >= kLanes) return store(p);
    T buffer[kLanes];
    store(buffer);
#if FUSEDRNN_VECTOR_BYTES == 64 && !defined(__SANITIZE_ADDRESS__)
    __m512i bytes = {};
    std::memcpy(&bytes, buffer, sizeof buffer);
    _mm512_mask_storeu_epi8(p, _bzhi_u64(~uint64_t{0}, n * sizeof(T)), bytes);
#else
    std::memcpy(static_cast<void*>(p), buffer, n * sizeof(T));
#endif
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
  FUSEDRNN_FN friend Vec operator/(Vec a, Vec b) { return divide(a.v, b.v); }
  FUSEDRNN_FN friend Vec operator-(Vec a) { return -a.v; }
  FUSEDRNN_FN friend Bits operator<=(Vec a, Vec b) { return a.v <= b.v; }
  FUSEDRNN_FN friend Bits operator<(Vec a, Vec b) { return a.v < b.v; }
  FUSEDRNN_FN friend Bits operator==(Vec a, Vec b) { return a.v == b.v; }
  FUSEDRNN_FN friend Vec where(Bits mask, Vec a, Vec b) { return mask ? a.v : b.v; }

  // The larger and the smaller of two; b where one of them is NaN.
  FUSEDRNN_FN static Vec max(Vec a, Vec b) {
#if FUSEDRNN_VECTOR_BYTES == 64
    if constexpr (std::is_same_v<S, float>)
      return Raw(_mm512_max_ps((__m512)a.v, (__m512)b.v));
    else
      return Raw(_mm512_max_pd((__m512d)a.v, (__m512d)b.v));
#elif FUSEDRNN_VECTOR_BYTES == 32
    if constexpr (std::is_same_v<S, float>)
      return Raw(_mm256_max_ps((__m256)a.v, (__m256)b.v));
    else
      return Raw(_mm256_max_pd((__m256d)a.v, (__m256d)b.v));
#else
    return a.v > b.v ? a.v : b.v;
#endif
  }
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

  // 1 / x; of AVX-512 floats its first 14 bits.
  FUSEDRNN_FN static Vec reciprocal(Vec x) {
#if FUSEDRNN_VECTOR_BYTES == 64
    if constexpr (std::is_same_v<S, float>) return Raw(_mm512_rcp14_ps((__m512)x.v));
#endif
    return Vec(1).v / x.v;
  }

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
#ifdef __clang__
    return Raw(__builtin_shufflevector(a.v, b.v, (((I & Half) ? kLanes + (I ^ Half) : I) + Odd)...));
#else  // GCC has the other since 12
    return Raw(__builtin_shuffle(a.v, b.v, Bits{((I & Half) ? kLanes + (I ^ Half) : I) + Odd...}));
#endif
  }

  // AVX-512 floats, a from 0 to 1: 14 bits and one step of Newton's, 1 ulp where b and the quotient are normal. An
  // infinite b makes y 0 and the remainder not a number, in whose place -1 comes. Its division occupies the multiplier
  // for 16 cycles, as long as a whole sigmoid takes.
  FUSEDRNN_FN static Raw divide(Raw a, Raw b) {
#if FUSEDRNN_VECTOR_BYTES == 64
    if constexpr (std::is_same_v<S, float>) {
      Raw y = reciprocal(b).v, quotient = a * y;
      return quotient + y * max(a - b * quotient, Vec(-1.0f)).v;
    }
#endif
    return a / b;
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
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    using Unsigned = typename Register<S>::Unsigned;
    typename Register<S>::Half bits;
    std::memcpy(&bits, p, sizeof bits);
    out.v = (Raw)(__builtin_convertvector(bits, Unsigned) << 16);
#if FUSEDRNN_VECTOR_BYTES == 32
  } else if constexpr (std::is_same_v<T, float16>) {
    out.v = (Raw)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#endif
#if FUSEDRNN_VECTOR_BYTES == 64
  } else if constexpr (std::is_same_v<T, float16>) {
    out.v = (Raw)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#endif
  } else {
    for (int i = 0; i < kLanes; ++i) out.v[i] = widen(p[i]);
  }
  return out;
}

template <class S>
template <class T>
FUSEDRNN_FN void Vec<S>::store(T* p) const {
  if constexpr (std::is_same_v<T, S>) {
    std::memcpy(p, &v, sizeof v);
#ifdef FUSEDRNN_DOT_PRODUCTS
  } else if constexpr (std::is_same_v<T, bfloat16>) {  // numbers below the least normal one become zero
    __m256bh half = _mm512_cvtneps_pbh((__m512)v);
    std::memcpy(p, &half, sizeof half);
#endif
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    using Unsigned = typename Register<S>::Unsigned;
    using Half = typename Register<S>::Half;
    Unsigned bits = (Unsigned)v;
    Unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    Half half = __builtin_convertvector(v != v ? Unsigned{} + 0x7fc0u : rounded, Half);
    std::memcpy(p, &half, sizeof half);
#if FUSEDRNN_VECTOR_BYTES == 32
  } else if constexpr (std::is_same_v<T, float16>) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#endif
#if FUSEDRNN_VECTOR_BYTES == 64
  } else if constexpr (std::is_same_v<T, float16>) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#endif
  } else {
    for (int i = 0; i < kLanes; ++i) p[i] = narrow<T>(v[i]);
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
