// The structs of csrc/scan.h, of arrays that come by the names they have there; those of a direction's weights with its
// number behind: w_hh0, w_hh1, and their gradients as dw_hh0. What is not given is null.
#pragma once

#include <string>

#include "scan.h"

namespace fusedrnn {

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

inline Zone zone_of(const std::string& state, const Arrays& arrays) {
  Zone zone{};
  const double* share;
  arrays.get("zone_" + state, zone.keeps), arrays.get("share_" + state, share);
  if (share) zone.share = *share;
  return zone;
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
  arrays.get("h0", p.h0), arrays.get("c0", p.c0);
  arrays.get("reset_h", p.reset_h), arrays.get("reset_c", p.reset_c);
  arrays.get("h_mask", p.h_mask);
  p.zone_h = zone_of("h", arrays), p.zone_c = zone_of("c", arrays);
  arrays.get("y", p.y), arrays.get("c_steps", p.c_steps), arrays.get("saved", p.saved);
  arrays.get("hidden", p.hidden), arrays.get("h_n", p.h_n), arrays.get("c_n", p.c_n);
  return p;
}

template <class T>
ScanGrads<T> grads_of(const Arrays& arrays) {
  ScanGrads<T> g{};
  arrays.get("dy", g.dy), arrays.get("dh_n", g.dh_n), arrays.get("dc_n", g.dc_n), arrays.get("dc_steps", g.dc_steps);
  arrays.get("dgates", g.steps.dgates), arrays.get("h_prev", g.steps.h_prev);
  arrays.get("dh_steps", g.steps.dh_steps);
  arrays.get("dh0", g.dh0), arrays.get("dc0", g.dc0);
  arrays.get("dreset_h", g.dreset_h), arrays.get("dreset_c", g.dreset_c);
  arrays.get("dx", g.dx);
  for (int d = 0; d < 2; ++d) {
    std::string number = std::to_string(d);
    arrays.get("dw_ih" + number, g.sums[d].w_ih), arrays.get("db_ih" + number, g.sums[d].b_ih);
    arrays.get("dw_hh" + number, g.sums[d].w_hh), arrays.get("db_hh" + number, g.sums[d].b_hh);
    arrays.get("dw_hr" + number, g.sums[d].w_hr);
  }
  return g;
}

}  // namespace fusedrnn
