// Two vectors that take every operation in turns: independent chains hide the latency of multiply-adds.
#pragma once

#include "vec.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class S>
struct Vec2 {
  using Scalar = S;
  using V = Vec<S>;
  static constexpr int kLanes = 2 * V::kLanes;
  struct Bits {
    typename V::Bits a, b;
    FUSEDRNN_FN friend Bits operator&(Bits x, Bits y) { return {x.a & y.a, x.b & y.b}; }
    FUSEDRNN_FN friend Bits operator|(Bits x, Bits y) { return {x.a | y.a, x.b | y.b}; }
    FUSEDRNN_FN friend Bits operator~(Bits x) { return {~x.a, ~x.b}; }
  };

  V a, b;

  Vec2() = default;
  FUSEDRNN_FN Vec2(V first, V second) : a(first), b(second) {}
  FUSEDRNN_FN explicit Vec2(S scalar) : a(scalar), b(scalar) {}
  FUSEDRNN_FN explicit Vec2(int scalar) : a(scalar), b(scalar) {}

  // of n lanes or all: the second vector has one at least
  template <class T>
  FUSEDRNN_FN static Vec2 load(const T* p, int64_t n = kLanes) {
    return {V::load(p), V::load(p + V::kLanes, n - V::kLanes)};
  }
  template <class T>
  FUSEDRNN_FN void store(T* p, int64_t n = kLanes) const {
    a.store(p), b.store(p + V::kLanes, n - V::kLanes);
  }

  FUSEDRNN_FN friend Vec2 operator+(Vec2 x, Vec2 y) { return {x.a + y.a, x.b + y.b}; }
  FUSEDRNN_FN friend Vec2 operator-(Vec2 x, Vec2 y) { return {x.a - y.a, x.b - y.b}; }
  FUSEDRNN_FN friend Vec2 operator*(Vec2 x, Vec2 y) { return {x.a * y.a, x.b * y.b}; }
  FUSEDRNN_FN friend Vec2 operator/(Vec2 x, Vec2 y) { return {x.a / y.a, x.b / y.b}; }
  FUSEDRNN_FN friend Vec2 operator-(Vec2 x) { return {-x.a, -x.b}; }
  FUSEDRNN_FN friend Bits operator<=(Vec2 x, Vec2 y) { return {x.a <= y.a, x.b <= y.b}; }
  FUSEDRNN_FN friend Bits operator<(Vec2 x, Vec2 y) { return {x.a < y.a, x.b < y.b}; }
  FUSEDRNN_FN friend Bits operator==(Vec2 x, Vec2 y) { return {x.a == y.a, x.b == y.b}; }
  FUSEDRNN_FN friend Vec2 where(Bits m, Vec2 x, Vec2 y) { return {where(m.a, x.a, y.a), where(m.b, x.b, y.b)}; }

  FUSEDRNN_FN static Vec2 max(Vec2 x, Vec2 y) { return {V::max(x.a, y.a), V::max(x.b, y.b)}; }
  FUSEDRNN_FN static Vec2 min(Vec2 x, Vec2 y) { return {V::min(x.a, y.a), V::min(x.b, y.b)}; }
  FUSEDRNN_FN static Vec2 minus_abs(Vec2 x) { return {V::minus_abs(x.a), V::minus_abs(x.b)}; }
  FUSEDRNN_FN static Vec2 with_sign_of(Vec2 x, Vec2 magnitude) {
    return {V::with_sign_of(x.a, magnitude.a), V::with_sign_of(x.b, magnitude.b)};
  }
  FUSEDRNN_FN static Vec2 reciprocal(Vec2 x) { return {V::reciprocal(x.a), V::reciprocal(x.b)}; }
  FUSEDRNN_FN static Vec2 quotient(Vec2 x, Vec2 y) { return {V::quotient(x.a, y.a), V::quotient(x.b, y.b)}; }
  FUSEDRNN_FN static Vec2 square_root(Vec2 x) { return {V::square_root(x.a), V::square_root(x.b)}; }
  FUSEDRNN_FN static Vec2 split_exponent(Vec2& x) { return {V::split_exponent(x.a), V::split_exponent(x.b)}; }
  FUSEDRNN_FN static Vec2 power_of_two(Vec2 n) { return {V::power_of_two(n.a), V::power_of_two(n.b)}; }
};

template <class S>
FUSEDRNN_FN Vec2<S> exp(Vec2<S> x) {
  return exp_of(x);
}
template <class S>
FUSEDRNN_FN Vec2<S> tanh(Vec2<S> x) {
  return tanh_of(x);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
