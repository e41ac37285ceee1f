// What a generated cell calls beyond activations.h, for every value type V: float and double (host and CUDA) and the
// CPU's vectors, whose logarithms stand in cpu/functions.h. NaN is torch's; the sign of a zero may differ.
#pragma once

#include <cmath>
#include <type_traits>

#include "activations.h"

namespace fusedrnn::fn {

template <class V>
FUSEDRNN_FN V number(double value) {
  if constexpr (std::is_floating_point_v<V>)
    return static_cast<V>(value);
  else
    return V(static_cast<typename V::Scalar>(value));
}

// Masks: bool, or what comparisons of vectors return.
template <class Mask>
FUSEDRNN_FN Mask both(Mask a, Mask b) {
  return a & b;
}
template <class Mask>
FUSEDRNN_FN Mask either(Mask a, Mask b) {
  return a | b;
}
template <class Mask>
FUSEDRNN_FN Mask opposite(Mask mask) {
  if constexpr (std::is_same_v<Mask, bool>)
    return !mask;
  else
    return ~mask;
}

template <class V>
FUSEDRNN_FN V exp(V x) {
  using std::exp;
  return exp(x);
}
template <class V>
FUSEDRNN_FN V expm1(V x) {
  using std::expm1;
  return expm1(x);
}
template <class V>
FUSEDRNN_FN V log(V x) {
  using std::log;
  return log(x);
}
template <class V>
FUSEDRNN_FN V log1p(V x) {
  using std::log1p;
  return log1p(x);
}
template <class V>
FUSEDRNN_FN V sqrt(V x) {
  using std::sqrt;
  return sqrt(x);
}
template <class V>
FUSEDRNN_FN V abs(V x) {
  using std::fabs;
  return fabs(x);
}

// Rounded once; the operator / of vectors is made for quotients of 0 to 1.
template <class V>
FUSEDRNN_FN V divide(V a, V b) {
  if constexpr (std::is_floating_point_v<V>)
    return a / b;
  else
    return V::quotient(a, b);
}
template <class V>
FUSEDRNN_FN V rsqrt(V x) {
  return divide(V(1), fn::sqrt(x));
}
template <class V>
FUSEDRNN_FN V sign(V x) {
  return where(V(0) < x, V(1), where(x < V(0), V(-1), V(0)));
}

template <class V>
FUSEDRNN_FN V maximum(V a, V b) {
  if constexpr (std::is_floating_point_v<V>)
    return a < b || b != b ? b : a;
  else
    return where(a == a, V::max(a, b), a);  // V::max returns b where one is NaN
}
template <class V>
FUSEDRNN_FN V minimum(V a, V b) {
  return -maximum(-a, -b);
}
template <class V>
FUSEDRNN_FN V clamp(V x, V low, V high) {
  if constexpr (std::is_floating_point_v<V>) {
    V raised = x < low ? low : x;
    return high < raised ? high : raised;
  } else {
    return V::min(high, V::max(low, x));
  }
}

// log(1 + e^x) without overflow.
template <class V>
FUSEDRNN_FN V softplus(V x) {
  return where(x <= V(0), V(0), x) + fn::log1p(fn::exp(-fn::abs(x)));
}

}  // namespace fusedrnn::fn
