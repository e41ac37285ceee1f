// What instructions do that the compiler's vector extension cannot say, or says worse. Here, and nowhere else, does one
// instruction set differ from another; what is not special comes last.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../scan.h"

namespace fusedrnn::FUSEDRNN_ISA {

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

using Floats = Register<float>::Raw;
using Doubles = Register<double>::Raw;
using Halves = Register<float>::Half;  // of 16-bit floats, as many as there are Floats

// Lane I of a or, beyond its last, of b.
template <int... I, class Raw>
FUSEDRNN_FN Raw shuffle(Raw a, Raw b) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, I...);
#else  // GCC has the other since 12
  using Bits = std::conditional_t<std::is_same_v<Raw, Floats>, Register<float>::Bits, Register<double>::Bits>;
  return __builtin_shuffle(a, b, Bits{I...});
#endif
}

// kVectors: of the panel that six rows meet. larger(a, b): NaN where b is. inverse(x): 1 / x; of AVX-512 floats its
// first 14 bits. widen, narrow: 16-bit floats to and from floats, to nearest, ties to even.

#if FUSEDRNN_VECTOR_BYTES == 64

constexpr int kVectors = 4;  // 6 x 4 sums in 32 registers

FUSEDRNN_FN Floats larger(Floats a, Floats b) { return (Floats)_mm512_max_ps((__m512)a, (__m512)b); }
FUSEDRNN_FN Doubles larger(Doubles a, Doubles b) { return (Doubles)_mm512_max_pd((__m512d)a, (__m512d)b); }
FUSEDRNN_FN Floats inverse(Floats x) { return (Floats)_mm512_rcp14_ps((__m512)x); }
FUSEDRNN_FN Doubles inverse(Doubles x) { return 1.0 / x; }
FUSEDRNN_FN Doubles quotient(Doubles a, Doubles b) { return a / b; }
// a from 0 to 1: 14 bits and one step of Newton's, 1 ulp where b and the quotient are normal. An infinite b makes y 0
// and the remainder not a number, in whose place -1 comes. The processor's division occupies the multiplier for 16
// cycles, as long as a whole sigmoid takes.
FUSEDRNN_FN Floats quotient(Floats a, Floats b) {
  Floats y = inverse(b), first = a * y;
  return first + y * larger(a - b * first, Floats{} - 1.0f);
}
FUSEDRNN_FN Floats widen(Halves x, float16) { return (Floats)_mm512_cvtph_ps((__m256i)x); }
FUSEDRNN_FN Halves narrow(Floats x, float16) { return (Halves)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT); }

#elif FUSEDRNN_VECTOR_BYTES == 32

constexpr int kVectors = 2;  // 6 x 2 sums in 16 registers

FUSEDRNN_FN Floats larger(Floats a, Floats b) { return (Floats)_mm256_max_ps((__m256)a, (__m256)b); }
FUSEDRNN_FN Doubles larger(Doubles a, Doubles b) { return (Doubles)_mm256_max_pd((__m256d)a, (__m256d)b); }
FUSEDRNN_FN Floats widen(Halves x, float16) { return (Floats)_mm256_cvtph_ps((__m128i)x); }
FUSEDRNN_FN Halves narrow(Floats x, float16) { return (Halves)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT); }

#elif defined(__aarch64__)

constexpr int kVectors = 3;  // 6 x 3 sums in 32 registers, beside 6 numbers: they have no room for 6 x 4

FUSEDRNN_FN Floats larger(Floats a, Floats b) { return (Floats)vmaxq_f32((float32x4_t)a, (float32x4_t)b); }
FUSEDRNN_FN Doubles larger(Doubles a, Doubles b) { return (Doubles)vmaxq_f64((float64x2_t)a, (float64x2_t)b); }
FUSEDRNN_FN Floats widen(Halves x, bfloat16) { return (Floats)vshll_n_u16((uint16x4_t)x, 16); }
FUSEDRNN_FN Floats widen(Halves x, float16) { return (Floats)vcvt_f32_f16((float16x4_t)x); }
FUSEDRNN_FN Halves narrow(Floats x, float16) { return (Halves)vcvt_f16_f32((float32x4_t)x); }

#else

constexpr int kVectors = 2;  // 6 x 2 sums in 16 registers

template <class Raw>
FUSEDRNN_FN Raw larger(Raw a, Raw b) {
  return a > b ? a : b;
}

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

FUSEDRNN_FN float widen(uint16_t x) {
  uint32_t magnitude = (x & 0x7fffu) << 13, sign = (x & 0x8000u) << 16;
  if (magnitude >= 0x7c00u << 13) return from_bits(magnitude | 0x7f800000u | sign);  // infinity, NaN
  return from_bits(to_bits(from_bits(magnitude) * 0x1p112f) | sign);                 // exact, subnormals too
}

FUSEDRNN_FN uint16_t narrow(float x) {
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
  return static_cast<uint16_t>(half | sign);
}

FUSEDRNN_FN Floats widen(Halves x, float16) {
  Floats wide;
  for (size_t i = 0; i < sizeof wide / sizeof(float); ++i) wide[i] = widen(x[i]);
  return wide;
}
FUSEDRNN_FN Halves narrow(Floats x, float16) {
  Halves half;
  for (size_t i = 0; i < sizeof x / sizeof(float); ++i) half[i] = narrow(x[i]);
  return half;
}

#endif

#if FUSEDRNN_VECTOR_BYTES != 64
template <class Raw>
FUSEDRNN_FN Raw inverse(Raw x) {
  return 1 / x;
}
template <class Raw>
FUSEDRNN_FN Raw quotient(Raw a, Raw b) {
  return a / b;
}
#endif

#if FUSEDRNN_VECTOR_BYTES != 16 || !defined(__aarch64__)
FUSEDRNN_FN Floats widen(Halves x, bfloat16) {
  return (Floats)(__builtin_convertvector(x, Register<float>::Unsigned) << 16);
}
#endif

// Dot products: sums of the products of pairs of bfloat16. The file that has them declares add_products(sum, a, b) and
// round_to_bfloat16(x) for its vectors.
#ifdef FUSEDRNN_DOT_PRODUCTS
constexpr bool kDotProducts = true;
FUSEDRNN_FN Floats add_dot(Floats sum, Floats a, Floats b) { return add_products(sum, a, b); }
FUSEDRNN_FN Halves narrow(Floats x, bfloat16) { return round_to_bfloat16(x); }
#else
constexpr bool kDotProducts = false;
FUSEDRNN_FN Floats add_dot(Floats sum, Floats, Floats) { return sum; }
FUSEDRNN_FN Halves narrow(Floats x, bfloat16) {
  using Unsigned = Register<float>::Unsigned;
  Unsigned bits = (Unsigned)x, rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return __builtin_convertvector(x != x ? Unsigned{} + 0x7fc0u : rounded, Halves);
}
#endif

// The last byte of each number. GCC takes them one by one for __builtin_convertvector.
FUSEDRNN_FN Register<float>::Bytes last_bytes(Register<float>::Bits x) {
#if FUSEDRNN_VECTOR_BYTES == 64
  return (Register<float>::Bytes)_mm512_cvtepi32_epi8((__m512i)x);
#elif FUSEDRNN_VECTOR_BYTES == 32
  __m256i four = _mm256_shuffle_epi8((__m256i)x, _mm256_set1_epi32(0x0c080400));  // of each half, all over it
  __m128i all = _mm_unpacklo_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
  Register<float>::Bytes bytes;
  std::memcpy(&bytes, &all, sizeof bytes);
  return bytes;
#else
  return __builtin_convertvector(x, Register<float>::Bytes);
#endif
}

// Sums of the products of the four bytes of each number: sum + a . b. With kByteOffset a's are unsigned and b's are
// not, else none is -128.
using Ints = Register<float>::Bits;
#ifdef FUSEDRNN_VNNI
constexpr int kByteOffset = 128;
FUSEDRNN_FN Ints add_products_of_bytes(Ints sum, Ints a, Ints b) {
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}
#else
constexpr int kByteOffset = 0;
FUSEDRNN_FN Ints add_products_of_bytes(Ints sum, Ints a, Ints b) {
#if FUSEDRNN_VECTOR_BYTES == 64
  auto even = [](Ints x) { return _mm512_srai_epi16(_mm512_slli_epi16((__m512i)x, 8), 8); };
  auto odd = [](Ints x) { return _mm512_srai_epi16((__m512i)x, 8); };
  return sum + (Ints)_mm512_madd_epi16(even(a), even(b)) + (Ints)_mm512_madd_epi16(odd(a), odd(b));
#elif FUSEDRNN_VECTOR_BYTES == 32  // |a| and b with the sign of a: sums of two products fit into 16 bits
  __m256i two = _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)a), _mm256_sign_epi8((__m256i)b, (__m256i)a));
  return sum + (Ints)_mm256_madd_epi16(two, _mm256_set1_epi16(1));
#elif defined(__ARM_FEATURE_DOTPROD)
  return (Ints)vdotq_s32((int32x4_t)sum, (int8x16_t)a, (int8x16_t)b);
#else
  for (int shift = 0; shift < 32; shift += 8) sum += (a << (24 - shift) >> 24) * (b << (24 - shift) >> 24);
  return sum;
#endif
}
#endif

// The first n numbers of a vector into a buffer, and out of one, which stays in a register where memory is masked: what
// is written to it in bytes and read as a vector waits for all of them. The sanitizer does not look into masked
// accesses.
#if FUSEDRNN_VECTOR_BYTES == 64 && !defined(__SANITIZE_ADDRESS__)
template <class T, size_t kLanes>
FUSEDRNN_FN void load_part(const T* p, int64_t n, T (&buffer)[kLanes]) {
  __m512i bytes = _mm512_maskz_loadu_epi8(_bzhi_u64(~uint64_t{0}, n * sizeof(T)), p);
  std::memcpy(static_cast<void*>(buffer), &bytes, sizeof buffer);
}
template <class T, size_t kLanes>
FUSEDRNN_FN void store_part(const T (&buffer)[kLanes], int64_t n, T* p) {
  __m512i bytes = {};
  std::memcpy(&bytes, buffer, sizeof buffer);
  _mm512_mask_storeu_epi8(p, _bzhi_u64(~uint64_t{0}, n * sizeof(T)), bytes);
}
#else
template <class T, size_t kLanes>
FUSEDRNN_FN void load_part(const T* p, int64_t n, T (&buffer)[kLanes]) {
#if FUSEDRNN_VECTOR_BYTES == 32 && !defined(__SANITIZE_ADDRESS__)
  if constexpr (std::is_same_v<T, float>) {  // of 4 bytes at least; stores are slow
    __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256 numbers = _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lanes));
    return void(std::memcpy(buffer, &numbers, sizeof buffer));
  }
#endif
  std::memcpy(static_cast<void*>(buffer), p, n * sizeof(T));
}
template <class T, size_t kLanes>
FUSEDRNN_FN void store_part(const T (&buffer)[kLanes], int64_t n, T* p) {
  std::memcpy(static_cast<void*>(p), buffer, n * sizeof(T));
}
#endif

}  // namespace fusedrnn::FUSEDRNN_ISA
