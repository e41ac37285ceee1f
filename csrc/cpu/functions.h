// Functions of vectors that only generated cells call: see ../functions.h.
#pragma once

#include "vec2.h"

namespace fusedrnn::FUSEDRNN_ISA {

// log(m), m within [sqrt(1/2), sqrt(2)], is 2 atanh(s), s = (m - 1) / (m + 1): 2 s (1 + z / 3 + z^2 / 5 + ...), where z
// is s^2. What is left out of the series is a tenth of an ulp at most. kLn2High times an exponent is exact.
template <class S>
struct LogConstants;
template <>
struct LogConstants<float> {
  static constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr float kLeastNormal = 0x1p-126f, kInfinity = __builtin_inff();
  static constexpr int kTerms = 4, kMantissa = 23;
};
template <>
struct LogConstants<double> {
  static constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr double kLeastNormal = 0x1p-1022, kInfinity = __builtin_inf();
  static constexpr int kTerms = 10, kMantissa = 52;
};

// Max error 2 ulp, subnormal numbers too.
template <class V>
FUSEDRNN_FN V log_of(V x) {
  using S = typename V::Scalar;
  using C = LogConstants<S>;
  auto subnormal = x < V(C::kLeastNormal);
  constexpr S kScale = S(int64_t{1} << C::kMantissa);
  V m = where(subnormal, x * V(kScale), x);
  V n = V::split_exponent(m) - where(subnormal, V(C::kMantissa), V(0));
  V f = m - V(1), s = V::quotient(f, f + V(2)), z = s * s;
  V series(S(2) / (2 * C::kTerms + 1));
#pragma GCC unroll 16
  for (int k = C::kTerms - 1; k > 0; --k) series = series * z + V(S(2) / (2 * k + 1));
  V half_square = V(S(0.5)) * f * f;
  V log = n * V(C::kLn2High) - ((half_square - (s * (half_square + z * series) + n * V(C::kLn2Low))) - f);
  log = where(x == V(C::kInfinity), x, log);
  V outside = where(x == V(0), V(-C::kInfinity), V(C::kInfinity) - V(C::kInfinity));  // NaN below zero, and of NaN
  return where(V(0) < x, log, outside);
}

// Max error 3 ulp. u = 1 + x was rounded: log(u) is made good by (x - (u - 1)) / u.
template <class V>
FUSEDRNN_FN V log1p_of(V x) {
  using C = LogConstants<typename V::Scalar>;
  V u = V(1) + x, lost = x - (u - V(1));
  V small = where(u < V(C::kInfinity), lost, V(0));
  return log_of(u) + where(V(0) < u, V::quotient(small, u), V(0));
}

// Max error 2 ulp. Where 2^n ends, n is that of exp.
template <class V>
FUSEDRNN_FN V expm1_of(V x) {
  using C = ExpConstants<typename V::Scalar>;
  auto p = split_power(V::max(V(C::kLeast), V::min(V(C::kMost), x)));
  V near = (p.scale - V(1)) + p.scale * p.part;  // the difference is exact, or rounds as the sum does
  return where(x < V(C::kMantissa), near, p.scale * (V(1) + p.part));
}

#define FUSEDRNN_FUNCTION(name, expression) \
  template <class S>                        \
  FUSEDRNN_FN Vec<S> name(Vec<S> x) {       \
    return expression;                      \
  }                                         \
  template <class S>                        \
  FUSEDRNN_FN Vec2<S> name(Vec2<S> x) {     \
    return expression;                      \
  }
FUSEDRNN_FUNCTION(log, log_of(x))
FUSEDRNN_FUNCTION(log1p, log1p_of(x))
FUSEDRNN_FUNCTION(expm1, expm1_of(x))
FUSEDRNN_FUNCTION(sqrt, decltype(x)::square_root(x))
FUSEDRNN_FUNCTION(fabs, -decltype(x)::minus_abs(x))
#undef FUSEDRNN_FUNCTION

}  // namespace fusedrnn::FUSEDRNN_ISA
