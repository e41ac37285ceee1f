// Twin: two vectors that take every operation in turns, so that one has something to do while the other's last result
// is under way (LSTM, N=16 .. 64: forward takes 0.985 of its time with H=128, 0.94 with H=40).
#pragma once

#include "vec.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class S>
struct Twin {
  using Scalar = S;
  using V = Vec<S>;
  static constexpr int kLanes = 2 * V::kLanes;
  struct Bits {
    typename V::Bits a, b;
  };

  V a, b;

  Twin() = default;
  FUSEDRNN_FN Twin(V first, V second) : a(first), b(second) {}
  FUSEDRNN_FN explicit Twin(S scalar) : a(scalar), b(scalar) {}
  FUSEDRNN_FN explicit Twin(int scalar) : a(scalar), b(scalar) {}

  // of n lanes or all: the second vector has one at least
  template <class T>
  FUSEDRNN_FN static Twin load(const T* p, int64_t n = kLanes) {
    return {V::load(p), V::load(p + V::kLanes, n - V::kLanes)};
  }
  template <class T>
  FUSEDRNN_FN void store(T* p, int64_t n = kLanes) const {
    a.store(p), b.store(p + V::kLanes, n - V::kLanes);
  }

  FUSEDRNN_FN friend Twin operator+(Twin x, Twin y) { return {x.a + y.a, x.b + y.b}; }
  FUSEDRNN_FN friend Twin operator-(Twin x, Twin y) { return {x.a - y.a, x.b - y.b}; }
  FUSEDRNN_FN friend Twin operator*(Twin x, Twin y) { return {x.a * y.a, x.b * y.b}; }
  FUSEDRNN_FN friend Twin operator/(Twin x, Twin y) { return {x.a / y.a, x.b / y.b}; }
  FUSEDRNN_FN friend Twin operator-(Twin x) { return {-x.a, -x.b}; }
  FUSEDRNN_FN friend Bits operator<=(Twin x, Twin y) { return {x.a <= y.a, x.b <= y.b}; }
  FUSEDRNN_FN friend Twin where(Bits m, Twin x, Twin y) { return {where(m.a, x.a, y.a), where(m.b, x.b, y.b)}; }

  FUSEDRNN_FN static Twin max(Twin x, Twin y) { return {V::max(x.a, y.a), V::max(x.b, y.b)}; }
  FUSEDRNN_FN static Twin min(Twin x, Twin y) { return {V::min(x.a, y.a), V::min(x.b, y.b)}; }
  FUSEDRNN_FN static Twin minus_abs(Twin x) { return {V::minus_abs(x.a), V::minus_abs(x.b)}; }
  FUSEDRNN_FN static Twin with_sign_of(Twin x, Twin magnitude) {
    return {V::with_sign_of(x.a, magnitude.a), V::with_sign_of(x.b, magnitude.b)};
  }
  FUSEDRNN_FN static Twin reciprocal(Twin x) { return {V::reciprocal(x.a), V::reciprocal(x.b)}; }
  FUSEDRNN_FN static Twin power_of_two(Twin n) { return {V::power_of_two(n.a), V::power_of_two(n.b)}; }
};

template <class S>
FUSEDRNN_FN Twin<S> exp(Twin<S> x) {
  return exp_of(x);
}
template <class S>
FUSEDRNN_FN Twin<S> tanh(Twin<S> x) {
  return tanh_of(x);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
