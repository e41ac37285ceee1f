// Backward: the same stages the other way. Their sums are gradients of a state, by way of the next step's gates; so a
// step first completes what the step before it (in this walk) has left, and one more step completes the last.
#pragma once

#include "walk.cuh"

namespace fusedrnn::cuda {

// The state before a step, as the forward pass took it.
template <class T>
__device__ T state_before(const Walk<T>& walk, const Step& s, int64_t n, int64_t width, int64_t j, const T* steps,
                          const T* initial, const T* reset) {
  int64_t own = walk.state(n, width, j);
  if (walk.cut(s, n)) return reset ? reset[own] : T{};
  return walk.next_alive(s, n) ? steps[walk.output(s.next_first + n, width, j)] : initial[own];
}

// Ends the gradient of a state at a reset, and puts down that of the initial state when the walk is over.
template <class T>
__device__ void complete(const Args<T>& a, const Walk<T>& walk, int64_t i, int64_t n, int64_t own, Arithmetic<T>* carry,
                         Arithmetic<T>* sum_at_resets, T* dinitial, T* dreset) {
  if (i > 0 && walk.cut(walk.step(i - 1), n)) {
    if (dreset) sum_at_resets[own] += *carry;
    *carry = 0;
  }
  if (i < a.p.shape.steps) return;
  dinitial[own] = device::narrow<T>(*carry);
  if (dreset) dreset[own] = device::narrow<T>(sum_at_resets[own]);
}

// Takes from the gradient of a state what zoneout leads past the cell, and returns that.
template <class S>
__device__ S lead_past(const Zone& zone, bool keeps, S* ds) {
  S past = zone_out(zone, keeps, *ds, S(0));
  *ds = zone_out(zone, keeps, S(0), *ds);
  return past;
}

// h as W_hh took it.
template <class T>
__device__ void put_h_prev(const Args<T>& a, const Walk<T>& walk, const Step& s, int64_t n, int64_t j, T h) {
  if (!a.g.steps.h_prev) return;
  if (a.p.h_mask) h = device::narrow<T>(walk.masked(n, j, device::widen(h)));
  a.g.steps.h_prev[(walk.d * a.p.shape.packed_rows + s.first + n) * a.p.shape.projected + j] = h;
}

// dh = dr W_hh, summed over gates and units; then the cell. With a projection the stage after this one makes dh, and
// the sums are of W_hr.
template <class Cell, class T, bool kProjects>
struct CellBackward {
  using S = Arithmetic<T>;
  static constexpr int G = Cell::kGates, A = Cell::kSaved, Q = Cell::kGrads;
  static constexpr int kTiles = 1, kPlanesIn = kProjects ? 1 : G, kPlanesOut = G, kExtraSteps = 1;
  static constexpr bool kBackward = true, kTransposed = true, kHasCell = Cell::kStates == 2;

  using Carry = Carried<T, !kProjects, kHasCell>;  // gradient of the state: of h less what comes through W_hh
  struct Inputs {
    T saved[A], h_prev, c_prev, dy, dc;
    bool keeps_h, keeps_c;
  };

  FUSEDRNN_FN static int64_t width(const Shape& s) { return s.hidden; }
  FUSEDRNN_FN static int64_t plane_depth(const Shape& s) { return kProjects ? s.projected : s.hidden; }

  __device__ static T weight(const Weights<T>& w, const Shape& s, int, int64_t j, int plane, int64_t k) {
    return kProjects ? w.w_hr[k * s.hidden + j] : w.w_hh[(plane * s.hidden + k) * s.hidden + j];
  }
  __device__ static S bias(const Weights<T>&, const Shape&, int, int64_t) { return S(0); }
  __device__ static S first(const Walk<T>&, int64_t, int64_t) { return S(0); }

  __device__ static Carry start(const Args<T>& a, const Walk<T>& walk, int64_t n, int64_t j) {
    int64_t own = walk.state(n, a.p.shape.hidden, j);
    return {!kProjects && a.g.dh_n ? device::widen(a.g.dh_n[own]) : S(0),
            kHasCell && a.g.dc_n ? device::widen(a.g.dc_n[own]) : S(0)};
  }

  __device__ static void read(const Args<T>& a, const Walk<T>& walk, const Step& s, int64_t n, int64_t j, Inputs* in) {
    if (!walk.alive(s, n)) return;
    const ScanParams<T>& p = a.p;
    int64_t row = s.first + n, H = p.shape.hidden;
#pragma unroll
    for (int k = 0; k < A; ++k) in->saved[k] = p.saved[walk.record(row, A, k, j)];
    if (!kProjects) {
      const bool wanted = !kHasCell || a.g.steps.h_prev;
      in->h_prev = wanted ? state_before(walk, s, n, H, j, p.y, p.h0, p.reset_h) : T{};
      in->dy = a.g.dy ? a.g.dy[walk.output(row, H, j)] : T{};
      in->keeps_h = walk.keeps(p.zone_h, row, H, j);
    }
    if (kHasCell) {
      in->c_prev = state_before(walk, s, n, H, j, p.c_steps, p.c0, p.reset_c);
      in->dc = a.g.dc_steps ? a.g.dc_steps[walk.output(row, H, j)] : T{};
      in->keeps_c = walk.keeps(p.zone_c, row, H, j);
    }
  }

  __device__ static void step(const Args<T>& a, const Walk<T>& walk, int64_t i, const Step& s, int64_t n, int64_t j,
                              const Inputs& in, const S (&sum)[1], Carry* carry, S (&out)[G]) {
    int64_t own = walk.state(n, a.p.shape.hidden, j), row = s.first + n;
    S dh = sum[0];
    if constexpr (!kProjects) {
      dh = carry->h + walk.masked(n, j, sum[0]);
      complete(a, walk, i, n, own, &dh, a.dreset_h, a.g.dh0, a.g.dreset_h);
    }
    if constexpr (kHasCell) complete(a, walk, i, n, own, &carry->c, a.dreset_c, a.g.dc0, a.g.dreset_c);
    S ds[2] = {dh, carry->c}, dgates[Q] = {};
    if (walk.alive(s, n)) {
      S saved[A], prev[2] = {kProjects ? S(0) : device::widen(in.h_prev), kHasCell ? device::widen(in.c_prev) : S(0)};
#pragma unroll
      for (int k = 0; k < A; ++k) saved[k] = device::widen(in.saved[k]);
      if (!kProjects) ds[0] += device::widen(in.dy);
      if (kHasCell) ds[1] += device::widen(in.dc);
      S past[2] = {};
      if (!kProjects) past[0] = lead_past(a.p.zone_h, in.keeps_h, &ds[0]);
      if (kHasCell) past[1] = lead_past(a.p.zone_c, in.keeps_c, &ds[1]);
      Cell::backward(saved, prev, ds, dgates);
      ds[0] += past[0], ds[1] += past[1];
    }
    carry->h = ds[0], carry->c = ds[1];
    if (n < s.rows) {
#pragma unroll
      for (int q = 0; q < Q; ++q) a.g.steps.dgates[walk.record(row, Q, q, j)] = device::narrow<T>(dgates[q]);
      if (!kProjects) put_h_prev(a, walk, s, n, j, walk.alive(s, n) ? in.h_prev : T{});
    }
#pragma unroll
    for (int g = 0; g < G; ++g) out[g] = dgates[g < G - 1 ? g : Q - 1];  // dr
  }
};

// The gradient of h where there is a projection: dh = dr W_hh.
template <class Cell, class T>
struct ProjectBackward {
  using S = Arithmetic<T>;
  static constexpr int kTiles = 1, kPlanesIn = Cell::kGates, kPlanesOut = 1, kExtraSteps = 1;
  static constexpr bool kBackward = true, kTransposed = true;

  using Carry = Carried<T, true, false>;
  struct Inputs {
    T h_prev, dy;
    bool keeps_h;
  };

  FUSEDRNN_FN static int64_t width(const Shape& s) { return s.projected; }
  FUSEDRNN_FN static int64_t plane_depth(const Shape& s) { return s.hidden; }

  __device__ static T weight(const Weights<T>& w, const Shape& s, int, int64_t j, int plane, int64_t k) {
    return w.w_hh[(plane * s.hidden + k) * s.projected + j];
  }
  __device__ static S bias(const Weights<T>&, const Shape&, int, int64_t) { return S(0); }
  __device__ static S first(const Walk<T>&, int64_t, int64_t) { return S(0); }

  __device__ static Carry start(const Args<T>& a, const Walk<T>& walk, int64_t n, int64_t j) {
    return {a.g.dh_n ? device::widen(a.g.dh_n[walk.state(n, a.p.shape.projected, j)]) : S(0)};
  }

  __device__ static void read(const Args<T>& a, const Walk<T>& walk, const Step& s, int64_t n, int64_t j, Inputs* in) {
    if (!walk.alive(s, n)) return;
    int64_t P = a.p.shape.projected;
    in->h_prev = state_before(walk, s, n, P, j, a.p.y, a.p.h0, a.p.reset_h);
    in->dy = a.g.dy ? a.g.dy[walk.output(s.first + n, P, j)] : T{};
    in->keeps_h = walk.keeps(a.p.zone_h, s.first + n, P, j);
  }

  __device__ static void step(const Args<T>& a, const Walk<T>& walk, int64_t i, const Step& s, int64_t n, int64_t j,
                              const Inputs& in, const S (&sum)[1], Carry* carry, S (&out)[1]) {
    int64_t P = a.p.shape.projected, own = walk.state(n, P, j);
    bool alive = walk.alive(s, n);
    carry->h += walk.masked(n, j, sum[0]);
    complete(a, walk, i, n, own, &carry->h, a.dreset_h, a.g.dh0, a.g.dreset_h);
    out[0] = 0;
    if (alive) {
      out[0] = carry->h + device::widen(in.dy);
      carry->h = lead_past(a.p.zone_h, in.keeps_h, &out[0]);
    }
    if (n >= s.rows) return;
    a.g.steps.dh_steps[(walk.d * a.p.shape.packed_rows + s.first + n) * P + j] = device::narrow<T>(out[0]);
    put_h_prev(a, walk, s, n, j, alive ? in.h_prev : T{});
  }
};

}  // namespace fusedrnn::cuda
