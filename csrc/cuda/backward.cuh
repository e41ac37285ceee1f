// Backward: the same stages the other way. A stage's sums are the gradient of a state that comes through the gates of
// the step before it in the iteration: each step first finishes that gradient, and one extra step those of the initial
// states.
#pragma once

#include "step_iterator.cuh"

namespace fusedrnn::cuda {

// The state before a step, as the forward pass took it.
template <class T>
__device__ T state_before(const StepIterator<T>& it, const Steps& s, const State<T>& state, int64_t n, int64_t width,
                          int64_t j) {
  const int64_t at = it.state(n, width, j);
  if (it.reset_between(s, n)) return state.reset ? state.reset[at] : T{};
  return it.alive(s.next, n) ? state.steps[it.output(s.next.first + n, width, j)] : state.initial[at];
}

// The gradient of a state before step number i of the iteration: a reset diverts it to the reset state, and the extra
// step stores what is left as that of the initial state.
template <class T>
__device__ void finish(const StepIterator<T>& it, int64_t i, int64_t n, int64_t at, const StateGrads<T>& grads,
                       Arithmetic<T>* dreset, Arithmetic<T>* ds) {
  if (i > 0 && it.reset_between(it.steps(i - 1), n)) {
    if (dreset) dreset[at] += *ds;
    *ds = 0;
  }
  if (i < it.p.shape.steps) return;
  grads.initial[at] = device::narrow<T>(*ds);
  if (dreset) grads.reset[at] = device::narrow<T>(dreset[at]);
}

// h as W_hh took it.
template <class T>
__device__ void store_h_prev(const Args<T>& a, const StepIterator<T>& it, const Steps& s, int64_t n, int64_t j, T h) {
  if (!a.g.steps.h_prev) return;
  if (a.p.h_mask) h = device::narrow<T>(it.masked(n, j, device::widen(h)));
  a.g.steps.h_prev[(it.d * a.p.shape.packed_rows + s.first + n) * a.p.shape.projected + j] = h;
}

// dh = dr W_hh, summed over gates and units; then the cell. With a projection the stage after this one makes dh, and
// the sums are of W_hr.
template <class Cell, class T, bool kProjects>
struct CellBackward {
  using S = Arithmetic<T>;
  static constexpr int G = Cell::kGates, A = Cell::kSaved, Q = Cell::kGrads;
  static constexpr int kFirst = kProjects ? 1 : 0, kEnd = Cell::kStates;
  static constexpr int kTiles = 1, kPlanesIn = kProjects ? 1 : G, kPlanesOut = G, kExtraSteps = 1;
  static constexpr bool kBackward = true, kTransposed = true;

  using Carry = Carried<T, kFirst, kEnd>;  // gradients of the states: of h less what comes through W_hh
  struct Inputs {
    T saved[A], prev[kEnd], dstep[kEnd];
    bool keeps[kEnd];
  };

  FUSEDRNN_FN static int64_t width(const Shape& s) { return s.hidden; }
  FUSEDRNN_FN static int64_t plane_depth(const Shape& s) { return kProjects ? s.projected : s.hidden; }

  __device__ static T weight(const Weights<T>& w, const Shape& s, int, int64_t j, int plane, int64_t k) {
    return kProjects ? w.w_hr[k * s.hidden + j] : w.w_hh[(plane * s.hidden + k) * s.hidden + j];
  }
  __device__ static S bias(const Weights<T>&, const Shape&, int, int64_t) { return S(0); }
  __device__ static S first(const StepIterator<T>&, int64_t, int64_t) { return S(0); }

  __device__ static Carry start(const Args<T>& a, const StepIterator<T>& it, int64_t n, int64_t j) {
    const int64_t at = it.state(n, a.p.shape.hidden, j);
    Carry carry{};
#pragma unroll
    for (int i = kFirst; i < kEnd; ++i)
      if (a.g.states[i].last) carry.s[i] = device::widen(a.g.states[i].last[at]);
    return carry;
  }

  __device__ static void read(const Args<T>& a, const StepIterator<T>& it, const Steps& s, int64_t n, int64_t j,
                              Inputs* in) {
    if (!it.alive(s, n)) return;
    const ScanParams<T>& p = a.p;
    const int64_t row = s.first + n, H = p.shape.hidden;
#pragma unroll
    for (int k = 0; k < A; ++k) in->saved[k] = p.saved[it.record(row, A, k, j)];
#pragma unroll
    for (int i = kFirst; i < kEnd; ++i) {
      const bool wanted = i > 0 || Cell::kReadsH || a.g.steps.h_prev;
      in->prev[i] = wanted ? state_before(it, s, p.states[i], n, H, j) : T{};
      in->dstep[i] = a.g.states[i].steps ? a.g.states[i].steps[it.output(row, H, j)] : T{};
      in->keeps[i] = it.keeps(p.states[i].zone, row, H, j);
    }
  }

  __device__ static void step(const Args<T>& a, const StepIterator<T>& it, int64_t number, const Steps& s, int64_t n,
                              int64_t j, const Inputs& in, const S (&sum)[1], Carry* carry, S (&out)[G]) {
    const int64_t at = it.state(n, a.p.shape.hidden, j), row = s.first + n;
    S ds[kEnd], dgates[Q] = {};
    ds[0] = kProjects ? sum[0] : carry->s[0] + it.masked(n, j, sum[0]);
#pragma unroll
    for (int i = 1; i < kEnd; ++i) ds[i] = carry->s[i];
#pragma unroll
    for (int i = kFirst; i < kEnd; ++i) finish(it, number, n, at, a.g.states[i], a.dresets[i], &ds[i]);
    if (it.alive(s, n)) {
      S saved[A], prev[kEnd] = {}, past[kEnd] = {};
#pragma unroll
      for (int k = 0; k < A; ++k) saved[k] = device::widen(in.saved[k]);
#pragma unroll
      for (int i = kFirst; i < kEnd; ++i) {
        const Zone& zone = a.p.states[i].zone;
        prev[i] = device::widen(in.prev[i]);
        ds[i] += device::widen(in.dstep[i]);
        if (zone) past[i] = zoneout_bypass(kept<S>(zone, in.keeps[i]), &ds[i]);
      }
      Cell::backward(saved, prev, ds, dgates);
#pragma unroll
      for (int i = kFirst; i < kEnd; ++i) ds[i] += past[i];
    }
#pragma unroll
    for (int i = kFirst; i < kEnd; ++i) carry->s[i] = ds[i];
    if (n < s.rows) {
#pragma unroll
      for (int q = 0; q < Q; ++q) a.g.steps.dgates[it.record(row, Q, q, j)] = device::narrow<T>(dgates[q]);
      if (!kProjects) store_h_prev(a, it, s, n, j, it.alive(s, n) ? in.prev[0] : T{});
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

  using Carry = Carried<T, 0, 1>;
  struct Inputs {
    T prev, dstep;
    bool keeps;
  };

  FUSEDRNN_FN static int64_t width(const Shape& s) { return s.projected; }
  FUSEDRNN_FN static int64_t plane_depth(const Shape& s) { return s.hidden; }

  __device__ static T weight(const Weights<T>& w, const Shape& s, int, int64_t j, int plane, int64_t k) {
    return w.w_hh[(plane * s.hidden + k) * s.projected + j];
  }
  __device__ static S bias(const Weights<T>&, const Shape&, int, int64_t) { return S(0); }
  __device__ static S first(const StepIterator<T>&, int64_t, int64_t) { return S(0); }

  __device__ static Carry start(const Args<T>& a, const StepIterator<T>& it, int64_t n, int64_t j) {
    const T* last = a.g.states[0].last;
    return {last ? device::widen(last[it.state(n, a.p.shape.projected, j)]) : S(0)};
  }

  __device__ static void read(const Args<T>& a, const StepIterator<T>& it, const Steps& s, int64_t n, int64_t j,
                              Inputs* in) {
    if (!it.alive(s, n)) return;
    const int64_t P = a.p.shape.projected;
    const T* dsteps = a.g.states[0].steps;
    in->prev = a.g.steps.h_prev ? state_before(it, s, a.p.states[0], n, P, j) : T{};
    in->dstep = dsteps ? dsteps[it.output(s.first + n, P, j)] : T{};
    in->keeps = it.keeps(a.p.states[0].zone, s.first + n, P, j);
  }

  __device__ static void step(const Args<T>& a, const StepIterator<T>& it, int64_t number, const Steps& s, int64_t n,
                              int64_t j, const Inputs& in, const S (&sum)[1], Carry* carry, S (&out)[1]) {
    const int64_t P = a.p.shape.projected;
    const Zone& zone = a.p.states[0].zone;
    const bool alive = it.alive(s, n);
    S dh = carry->s[0] + it.masked(n, j, sum[0]), past = 0;
    finish(it, number, n, it.state(n, P, j), a.g.states[0], a.dresets[0], &dh);
    if (alive) {
      dh += device::widen(in.dstep);
      if (zone) past = zoneout_bypass(kept<S>(zone, in.keeps), &dh);
    }
    out[0] = alive ? dh : S(0);
    carry->s[0] = alive ? past : dh;
    if (n >= s.rows) return;
    a.g.steps.dh_steps[(it.d * a.p.shape.packed_rows + s.first + n) * P + j] = device::narrow<T>(out[0]);
    store_h_prev(a, it, s, n, j, alive ? in.prev : T{});
  }
};

}  // namespace fusedrnn::cuda
