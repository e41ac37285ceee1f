// Forward: what becomes of one unit of one row in one step, once its recurrent sums are there.
//
// A stage is a product and what is done with its sums. A thread calls step() for its (row n, unit j) pairs.
//   kTiles       sums of a pair
//   kPlanesIn    planes of values that its product sums over
//   kPlanesOut   values that a pair hands to the next product
//   kExtraSteps  steps beyond the last
//   Carry        what a pair takes from step to step
//   Inputs       what a step reads that does not depend on the step before: loaded ahead of it, as stored
#pragma once

#include "step_iterator.cuh"

namespace fusedrnn::cuda {

// Stores a state after step s; returns the state before the next step.
template <class T>
__device__ Arithmetic<T> store_state(const StepIterator<T>& it, const Steps& s, const State<T>& state, int64_t n,
                                     int64_t width, int64_t j, bool alive, Arithmetic<T> value) {
  using S = Arithmetic<T>;
  if (state.steps && n < s.rows)
    state.steps[it.output(s.first + n, width, j)] = device::narrow<T>(alive ? value : S(0));
  const int64_t at = it.state(n, width, j);
  if (!it.alive(s.next, n)) state.last[at] = device::narrow<T>(value);  // a finished row stores the same again
  if (!it.reset_between(s, n)) return value;
  return state.reset ? device::widen(state.reset[at]) : S(0);
}

template <class T>
__device__ Arithmetic<T> first_state(const StepIterator<T>& it, const State<T>& state, int64_t n, int64_t width,
                                     int64_t j) {
  const int64_t at = it.state(n, width, j);
  if (!it.reset_between(it.steps(-1), n)) return device::widen(state.initial[at]);
  return state.reset ? device::widen(state.reset[at]) : Arithmetic<T>(0);
}

// The cell. With a projection its hidden state goes to the next stage, which makes h of it and carries h.
template <class Cell, class T, bool kProjects>
struct CellForward {
  using S = Arithmetic<T>;
  static constexpr int G = Cell::kGates, A = Cell::kSaved, kFirst = kProjects ? 1 : 0, kEnd = Cell::kStates;
  static constexpr int kTiles = G, kPlanesIn = 1, kPlanesOut = 1, kExtraSteps = 0;
  static constexpr bool kBackward = false, kTransposed = false;

  using Carry = Carried<T, kFirst, kEnd>;
  struct Inputs {
    T x[G];
    bool keeps[kEnd];
  };

  FUSEDRNN_FN static int64_t width(const Shape& s) { return s.hidden; }           // units that have sums
  FUSEDRNN_FN static int64_t plane_depth(const Shape& s) { return s.projected; }  // values a plane sums over

  __device__ static T weight(const Weights<T>& w, const Shape& s, int tile, int64_t j, int, int64_t k) {
    return w.w_hh[(tile * s.hidden + j) * s.projected + k];
  }
  __device__ static S bias(const Weights<T>& w, const Shape& s, int tile, int64_t j) {
    return w.b_hh ? device::widen(w.b_hh[tile * s.hidden + j]) : S(0);
  }
  // What the first product sums over.
  __device__ static S first(const StepIterator<T>& it, int64_t n, int64_t k) {
    return it.masked(n, k, first_state(it, it.p.states[0], n, it.p.shape.projected, k));
  }

  __device__ static Carry start(const Args<T>& a, const StepIterator<T>& it, int64_t n, int64_t j) {
    Carry carry{};
#pragma unroll
    for (int i = kFirst; i < kEnd; ++i) carry.s[i] = first_state(it, a.p.states[i], n, a.p.shape.hidden, j);
    return carry;
  }

  __device__ static void read(const Args<T>& a, const StepIterator<T>& it, const Steps& s, int64_t n, int64_t j,
                              Inputs* in) {
    if (!it.alive(s, n)) return;
    const ScanParams<T>& p = a.p;
    const int64_t row = s.first + n, H = p.shape.hidden;
    const int planes = p.saved ? A : G;
#pragma unroll
    for (int g = 0; g < G; ++g) in->x[g] = p.gates_x[it.record(row, planes, g, j)];
#pragma unroll
    for (int i = kFirst; i < kEnd; ++i) in->keeps[i] = it.keeps(p.states[i].zone, row, H, j);
  }

  __device__ static void step(const Args<T>& a, const StepIterator<T>& it, int64_t, const Steps& s, int64_t n,
                              int64_t j, const Inputs& in, const S (&r)[G], Carry* carry, S (&out)[1]) {
    const ScanParams<T>& p = a.p;
    const bool alive = it.alive(s, n), there = n < s.rows;
    const int64_t row = s.first + n, H = p.shape.hidden;
    S state[kEnd], keep[A] = {}, x[G];
#pragma unroll
    for (int i = 0; i < kEnd; ++i) state[i] = carry->s[i];
    if (alive) {
#pragma unroll
      for (int g = 0; g < G; ++g) x[g] = device::widen(in.x[g]);
      Cell::forward(x, r, state, keep);
#pragma unroll
      for (int i = kFirst; i < kEnd; ++i)
        if (const Zone& zone = p.states[i].zone) state[i] = blend(kept<S>(zone, in.keeps[i]), carry->s[i], state[i]);
      state[0] = device::widen(device::narrow<T>(state[0]));  // the next step goes on from the h that is stored
    }
    if (there && p.saved)
#pragma unroll
      for (int k = 0; k < A; ++k) p.saved[it.record(row, A, k, j)] = device::narrow<T>(keep[k]);
#pragma unroll
    for (int i = 1; i < kEnd; ++i) carry->s[i] = store_state(it, s, p.states[i], n, H, j, alive, state[i]);
    if constexpr (kProjects) {
      out[0] = state[0];  // 0 of a row that takes no step: this stage carries no h
      if (there && p.hidden) p.hidden[it.record(row, 1, 0, j)] = device::narrow<T>(out[0]);
    } else {
      carry->s[0] = store_state(it, s, p.states[0], n, H, j, alive, state[0]);
      out[0] = it.masked(n, j, carry->s[0]);
    }
  }
};

// h = W_hr hidden.
template <class T>
struct ProjectForward {
  using S = Arithmetic<T>;
  static constexpr int kTiles = 1, kPlanesIn = 1, kPlanesOut = 1, kExtraSteps = 0;
  static constexpr bool kBackward = false, kTransposed = false;

  using Carry = Carried<T, 0, 1>;
  struct Inputs {
    bool keeps;
  };

  FUSEDRNN_FN static int64_t width(const Shape& s) { return s.projected; }
  FUSEDRNN_FN static int64_t plane_depth(const Shape& s) { return s.hidden; }

  __device__ static T weight(const Weights<T>& w, const Shape& s, int, int64_t j, int, int64_t k) {
    return w.w_hr[j * s.hidden + k];
  }
  __device__ static S bias(const Weights<T>&, const Shape&, int, int64_t) { return S(0); }
  __device__ static S first(const StepIterator<T>&, int64_t, int64_t) { return S(0); }

  __device__ static Carry start(const Args<T>& a, const StepIterator<T>& it, int64_t n, int64_t j) {
    return {first_state(it, a.p.states[0], n, a.p.shape.projected, j)};
  }
  __device__ static void read(const Args<T>& a, const StepIterator<T>& it, const Steps& s, int64_t n, int64_t j,
                              Inputs* in) {
    if (it.alive(s, n)) in->keeps = it.keeps(a.p.states[0].zone, s.first + n, a.p.shape.projected, j);
  }

  __device__ static void step(const Args<T>& a, const StepIterator<T>& it, int64_t, const Steps& s, int64_t n,
                              int64_t j, const Inputs& in, const S (&sum)[1], Carry* carry, S (&out)[1]) {
    const State<T>& state = a.p.states[0];
    const bool alive = it.alive(s, n);
    S h = carry->s[0];
    if (alive) {
      h = state.zone ? blend(kept<S>(state.zone, in.keeps), h, sum[0]) : sum[0];
      h = device::widen(device::narrow<T>(h));  // the next step goes on from the h that is stored
    }
    carry->s[0] = store_state(it, s, state, n, a.p.shape.projected, j, alive, h);
    out[0] = it.masked(n, j, carry->s[0]);
  }
};

}  // namespace fusedrnn::cuda
