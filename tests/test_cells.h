// Cells with more states than the built-in ones have, for tests: ../csrc/cells.h says what a cell is, cells.py has them
// in plain PyTorch.
#pragma once

#include <string_view>

#include "cells.h"

namespace fusedrnn {

// States h, c and n: n is a moving average of c.
struct ThreeStatesCell : BuiltInCell<0, 1, 2> {
  static constexpr const char* kName = "THREE_STATES";
  static constexpr int kGates = 3, kStates = 3, kSaved = 3, kGrads = 3;
  static constexpr bool kReadsH = false;

  template <class V>
  FUSEDRNN_FN static void forward(const V* x, const V* r, V* s, V* saved) {
    V i = sigmoid(x[0] + r[0]);
    V f = sigmoid(x[1] + r[1]);
    V g = Tanh::apply(x[2] + r[2]);
    s[1] = f * s[1] + i * g;
    s[2] = s[1] + f * (s[2] - s[1]);
    s[0] = Tanh::apply(s[1]) * sigmoid(s[2]);
    saved[0] = i, saved[1] = f, saved[2] = g;
  }

  template <class V>
  FUSEDRNN_FN static void backward(const V* saved, const V* prev, V* ds, V* dgates) {
    V i = saved[0], f = saved[1], g = saved[2];
    V c = f * prev[1] + i * g, n = c + f * (prev[2] - c);
    V a = Tanh::apply(c), b = sigmoid(n);
    V dn = ds[2] + sigmoid_grad(b, ds[0] * a);
    V dc = ds[1] + Tanh::grad(a, ds[0] * b) + dn * (V(1) - f);
    dgates[0] = sigmoid_grad(i, dc * g);
    dgates[1] = sigmoid_grad(f, dc * prev[1] + dn * (prev[2] - c));
    dgates[2] = Tanh::grad(g, dc * i);
    ds[0] = V(0);
    ds[1] = dc * f;
    ds[2] = dn * f;
  }
};

// States h, c, n and m, with h in the equations and a gate whose two parts have different gradients.
struct FourStatesCell : BuiltInCell<0, 1, 3> {
  static constexpr const char* kName = "FOUR_STATES";
  static constexpr int kGates = 3, kStates = 4, kSaved = 4, kGrads = 4;
  static constexpr bool kReadsH = true;

  template <class V>
  FUSEDRNN_FN static void forward(const V* x, const V* r, V* s, V* saved) {
    V a = sigmoid(x[0] + r[0]);
    V b = sigmoid(x[1] + r[1]);
    V g = Tanh::apply(x[2] + a * r[2]);
    s[1] = g + b * (s[1] - g);
    s[2] = b * s[2] + a * s[0];
    s[3] = a * s[3] + g;
    V q = Tanh::apply(s[1] - s[2] * s[3]);
    s[0] = q + b * (s[0] - q);
    saved[0] = a, saved[1] = b, saved[2] = g, saved[3] = r[2];
  }

  template <class V>
  FUSEDRNN_FN static void backward(const V* saved, const V* prev, V* ds, V* dgates) {
    V a = saved[0], b = saved[1], g = saved[2], r_g = saved[3];
    V c = g + b * (prev[1] - g), n = b * prev[2] + a * prev[0], m = a * prev[3] + g;
    V q = Tanh::apply(c - n * m);
    V dq = Tanh::grad(q, ds[0] * (V(1) - b));
    V dc = ds[1] + dq, dn = ds[2] - dq * m, dm = ds[3] - dq * n;
    V dg = Tanh::grad(g, dc * (V(1) - b) + dm);
    dgates[0] = sigmoid_grad(a, dn * prev[0] + dm * prev[3] + dg * r_g);
    dgates[1] = sigmoid_grad(b, ds[0] * (prev[0] - q) + dc * (prev[1] - g) + dn * prev[2]);
    dgates[2] = dg;
    dgates[3] = dg * a;
    ds[0] = ds[0] * b + dn * a;
    ds[1] = dc * b;
    ds[2] = dn * b;
    ds[3] = dm * a;
  }
};

using TestCells = CellList<ThreeStatesCell, FourStatesCell>;

template <class... A, class... B>
CellList<A..., B...> operator+(CellList<A...>, CellList<B...>) {
  return {};
}
using AllCells = decltype(BuiltInCells{} + TestCells{});

// Calls f with the cell of this name; false if the list has none.
template <class... Cells, class F>
bool with_cell(CellList<Cells...>, std::string_view name, F&& f) {
  return ((name == Cells::kName && (f(Cells{}), true)) || ...);
}

}  // namespace fusedrnn
