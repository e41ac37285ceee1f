// The structs of csrc/scan.h, of arrays that come by name. Those of a direction's weights have its number behind:
// w_hh0, w_hh1. Those of state i have kStateNames[i] in their names: h0, h_n, reset_h, zone_h or share_h, and c_steps;
// h_steps are y. Gradients are named dw_hh0, dh0, dreset_h, dy. What is not given is null.
#pragma once

#include <string>

#include "scan.h"

namespace fusedrnn {

constexpr const char* kStateNames[kMaxStates] = {"h", "c", "s2", "s3"};

class Arrays {
 public:
  Arrays(int count, const char* const* names, void* const* data) : count_(count), names_(names), data_(data) {}

  template <class E>
  void get(const std::string& name, E*& pointer) const {
    pointer = nullptr;
    for (int i = 0; i < count_; ++i)
      if (name == names_[i]) pointer = static_cast<E*>(data_[i]);
  }

 private:
  int count_;
  const char* const* names_;
  void* const* data_;
};

inline Shape shape_of(const int64_t* sizes) {
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], static_cast<int>(sizes[6])};
}

inline std::string steps_name(int state) { return state ? std::string(kStateNames[state]) + "_steps" : "y"; }

template <class T>
State<T> state_of(int i, const Arrays& arrays) {
  const std::string name = kStateNames[i];
  State<T> s{};
  const double* share;
  arrays.get(name + "0", s.initial), arrays.get("reset_" + name, s.reset);
  arrays.get("zone_" + name, s.zone.keeps), arrays.get("share_" + name, share);
  if (share) s.zone.fraction = *share;
  arrays.get(steps_name(i), s.steps), arrays.get(name + "_n", s.last);
  return s;
}

template <class T>
ScanParams<T> params_of(const Shape& shape, const Arrays& arrays) {
  ScanParams<T> p{};
  p.shape = shape;
  arrays.get("offsets", p.batch.offsets);
  arrays.get("lengths", p.batch.lengths);
  arrays.get("reset", p.batch.reset);
  for (int d = 0; d < shape.directions; ++d) {
    std::string number = std::to_string(d);
    arrays.get("w_ih" + number, p.weights[d].w_ih), arrays.get("b_ih" + number, p.weights[d].b_ih);
    arrays.get("w_hh" + number, p.weights[d].w_hh);
    arrays.get("b_hh" + number, p.weights[d].b_hh);
    arrays.get("w_hr" + number, p.weights[d].w_hr);
  }
  arrays.get("x", p.x), arrays.get("gates_x", p.gates_x);
  arrays.get("h_mask", p.h_mask);
  for (int i = 0; i < kMaxStates; ++i) p.states[i] = state_of<T>(i, arrays);
  arrays.get("saved", p.saved), arrays.get("hidden", p.hidden);
  return p;
}

template <class T>
ScanGrads<T> grads_of(const Arrays& arrays) {
  ScanGrads<T> g{};
  for (int i = 0; i < kMaxStates; ++i) {
    const std::string name = kStateNames[i];
    StateGrads<T>& s = g.states[i];
    arrays.get("d" + steps_name(i), s.steps), arrays.get("d" + name + "_n", s.last);
    arrays.get("d" + name + "0", s.initial), arrays.get("dreset_" + name, s.reset);
  }
  arrays.get("dx", g.dx);
  arrays.get("dgates", g.steps.dgates), arrays.get("h_prev", g.steps.h_prev);
  arrays.get("dh_steps", g.steps.dh_steps);
  for (int d = 0; d < 2; ++d) {
    std::string number = std::to_string(d);
    arrays.get("dw_ih" + number, g.weights[d].w_ih), arrays.get("db_ih" + number, g.weights[d].b_ih);
    arrays.get("dw_hh" + number, g.weights[d].w_hh), arrays.get("db_hh" + number, g.weights[d].b_hh);
    arrays.get("dw_hr" + number, g.weights[d].w_hr);
  }
  return g;
}

}  // namespace fusedrnn
