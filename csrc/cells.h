// What one unit does in one step. The gate equations stand here and nowhere else in C++.
//
//   x[kGates]      input part of the pre-activations: x W_ih^T + b_ih; kVectors learned vectors of one value a unit and
//                  kInputs per-step inputs follow
//   r[kRecurrent]  recurrent part, of the gates that have one: h W_hh^T + b_hh
//   s[kStates]     in: the states before the step, out: after it; s[0] is h. Where kReadsH is false, the cell reads
//                  neither s[0] nor prev[0]: h reaches it through W_hh alone
//   saved[kSaved]  what the backward pass needs: activated gates
//   prev[kStates]  in backward: the states before the step; the vectors and per-step inputs follow
//   ds[kStates]    in: gradient of the state after the step; out: of the state before it, less what reaches h through
//                  W_hh: the driver adds that, dr @ W_hh
//   dgates[kGrads] gradient of the pre-activations: of x the first kGates planes, of r[k] plane kRecurrentGrads[k]; the
//                  gradients of the vectors and per-step inputs follow, of this unit and step
//
// Gate order is PyTorch's: i f g o and r z n.
#pragma once

#include "activations.h"
#include "scan.h"

namespace fusedrnn {

// What the cells here have in common: every gate has a recurrent part, and nothing else is given.
template <int... Grads>
struct BuiltInCell {
  static constexpr int kRecurrent = sizeof...(Grads), kVectors = 0, kInputs = 0;
  static constexpr int kRecurrentGrads[] = {Grads...};
};

struct LstmCell : BuiltInCell<0, 1, 2, 3> {
  static constexpr const char* kName = "LSTM";
  static constexpr int kGates = 4, kStates = 2, kSaved = 4, kGrads = 4;
  static constexpr bool kReadsH = false;

  template <class V>
  FUSEDRNN_FN static void forward(const V* x, const V* r, V* s, V* saved) {
    V i = sigmoid(x[0] + r[0]);
    V f = sigmoid(x[1] + r[1]);
    V g = Tanh::apply(x[2] + r[2]);
    V o = sigmoid(x[3] + r[3]);
    s[1] = f * s[1] + i * g;
    s[0] = o * Tanh::apply(s[1]);
    saved[0] = i, saved[1] = f, saved[2] = g, saved[3] = o;
  }

  template <class V>
  FUSEDRNN_FN static void backward(const V* saved, const V* prev, V* ds, V* dgates) {
    V i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    V tanh_c = Tanh::apply(f * prev[1] + i * g);
    V dc = ds[1] + Tanh::grad(tanh_c, ds[0] * o);
    dgates[0] = sigmoid_grad(i, dc * g);
    dgates[1] = sigmoid_grad(f, dc * prev[1]);
    dgates[2] = Tanh::grad(g, dc * i);
    dgates[3] = sigmoid_grad(o, ds[0] * tanh_c);
    ds[0] = V(0);
    ds[1] = dc * f;
  }
};

struct GruCell : BuiltInCell<0, 1, 3> {
  static constexpr const char* kName = "GRU";
  static constexpr int kGates = 3, kStates = 1, kSaved = 4, kGrads = 4;
  static constexpr bool kReadsH = true;

  template <class V>
  FUSEDRNN_FN static void forward(const V* x, const V* r, V* s, V* saved) {
    V reset = sigmoid(x[0] + r[0]);
    V update = sigmoid(x[1] + r[1]);
    V n = Tanh::apply(x[2] + reset * r[2]);
    s[0] = n + update * (s[0] - n);
    saved[0] = reset, saved[1] = update, saved[2] = n, saved[3] = r[2];
  }

  template <class V>
  FUSEDRNN_FN static void backward(const V* saved, const V* prev, V* ds, V* dgates) {
    V reset = saved[0], update = saved[1], n = saved[2], r_n = saved[3];
    V dn = Tanh::grad(n, ds[0] * (V(1) - update));
    dgates[0] = sigmoid_grad(reset, dn * r_n);
    dgates[1] = sigmoid_grad(update, ds[0] * (prev[0] - n));
    dgates[2] = dn;
    dgates[3] = dn * reset;
    ds[0] = ds[0] * update;
  }
};

template <class Activation>
struct ElmanCell : BuiltInCell<0> {
  static constexpr int kGates = 1, kStates = 1, kSaved = 1, kGrads = 1;
  static constexpr bool kReadsH = false;

  template <class V>
  FUSEDRNN_FN static void forward(const V* x, const V* r, V* s, V* saved) {
    s[0] = Activation::apply(x[0] + r[0]);
    saved[0] = s[0];
  }

  template <class V>
  FUSEDRNN_FN static void backward(const V* saved, const V*, V* ds, V* dgates) {
    dgates[0] = Activation::grad(saved[0], ds[0]);
    ds[0] = V(0);
  }
};

struct TanhRnnCell : ElmanCell<Tanh> {
  static constexpr const char* kName = "RNN_TANH";
};
struct ReluRnnCell : ElmanCell<Relu> {
  static constexpr const char* kName = "RNN_RELU";
};

template <class... Cells>
struct CellList {};
using BuiltInCells = CellList<LstmCell, GruCell, TanhRnnCell, ReluRnnCell>;

template <class Cell>
constexpr CellTraits traits_of() {
  static_assert(Cell::kStates <= kMaxStates && Cell::kInputs <= kMaxInputs && Cell::kGrads >= Cell::kGates);
  return {Cell::kName,    Cell::kGates,  Cell::kRecurrent, Cell::kStates,
          Cell::kVectors, Cell::kInputs, Cell::kSaved,     Cell::kGrads};
}

}  // namespace fusedrnn
