// Backward: the same stages the other way. A stage's sums are the gradient of a state that comes through the gates of
// the step before it in the iteration: each step first completes that gradient, and finish() those of the initial
// states, with the sums of one product more than there are steps.
#pragma once

#include "forward.cuh"

namespace fusedrnn::cuda {

// Reads the state before a step, as the forward pass stored it.
template <class T>
__device__ void read_state_before(const Row& row, const State<T>& state, int64_t j, T* prev) {
  if (row.goes_on) *prev = state.steps[row.next_output + j];
}

// And what it was: a reset state and the initial one are not read in every step.
template <class T, int kFirst, int kEnd>
__device__ Arithmetic<T> state_before(const ScanParams<T>& p, const Row& row, int64_t at,
                                      const Fixed<T, kFirst, kEnd>& fixed, int i, T read) {
  return row.reset ? reset_state(p.states[i], at) : device::widen(row.goes_on ? read : fixed.initial[i]);
}

// A reset diverts the gradients of the states before a step to the reset states.
template <int kFirst, int kEnd, class T>
__device__ void divert(const Args<T>& a, int64_t at, Arithmetic<T> (&ds)[kEnd]) {
#pragma unroll
  for (int i = kFirst; i < kEnd; ++i) {
    if (a.dresets[i]) a.dresets[i][at] += ds[i];
    ds[i] = 0;
  }
}

template <int kFirst, int kEnd, class T>
__device__ void store_first_gradients(const Args<T>& a, int64_t at, const Arithmetic<T> (&ds)[kEnd]) {
#pragma unroll
  for (int i = kFirst; i < kEnd; ++i) {
    a.g.states[i].initial[at] = device::narrow<T>(ds[i]);
    if (a.dresets[i]) a.g.states[i].reset[at] = device::narrow<T>(a.dresets[i][at]);
  }
}

// h as W_hh took it.
template <class T, class Each>
__device__ void store_h_prev(T* to, Each&& each) {
  if (to)
    each([&](const Row& row, int64_t j, const auto& made) {
      to[row.record + j] = row.alive ? device::narrow<T>(made.h_prev) : T{};
    });
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
  using Fixed = cuda::Fixed<T, kFirst, kEnd>;
  struct Inputs {
    T saved[A], prev[kEnd], dstep[kEnd];
    uint32_t keeps;  // a bit a state
  };
  struct Made {
    S dgates[Q], h_prev;
  };

  FUSEDRNN_FN static int64_t width(const Shape& s) { return s.hidden; }
  FUSEDRNN_FN static int64_t plane_depth(const Shape& s) { return kProjects ? s.projected : s.hidden; }

  __device__ static T weight(const Weights<T>& w, const Shape& s, int, int64_t j, int plane, int64_t k) {
    return kProjects ? w.w_hr[k * s.hidden + j] : w.w_hh[(plane * s.hidden + k) * s.hidden + j];
  }
  __device__ static S bias(const Weights<T>&, const Shape&, int, int64_t) { return S(0); }
  __device__ static S first(const StepIterator<T>&, int64_t, int64_t) { return S(0); }

  __device__ static Carry start(const Args<T>& a, const StepIterator<T>& it, int64_t n, int64_t j) {
    const int64_t at = it.state(n, j);
    Carry carry{};
#pragma unroll
    for (int i = kFirst; i < kEnd; ++i)
      if (a.g.states[i].last) carry.s[i] = device::widen(a.g.states[i].last[at]);
    return carry;
  }

  template <class Each>
  __device__ static void read(const Args<T>& a, Each&& each) {
    const ScanParams<T>& p = a.p;
    each([&](const Row& row, int64_t j, Inputs& in) {
#pragma unroll
      for (int k = 0; k < A; ++k) in.saved[k] = p.saved[row.record * A + k * p.shape.hidden + j];
    });
#pragma unroll
    for (int i = kFirst; i < kEnd; ++i) {
      if (i > 0 || Cell::kReadsH || a.g.steps.h_prev)
        each([&](const Row& row, int64_t j, Inputs& in) { read_state_before(row, p.states[i], j, &in.prev[i]); });
      if (const T* dsteps = a.g.states[i].steps)
        each([&](const Row& row, int64_t j, Inputs& in) { in.dstep[i] = dsteps[row.output + j]; });
      if (const bool* keeps = p.states[i].zone.keeps)
        each([&](const Row& row, int64_t j, Inputs& in) { set_bit(&in.keeps, i, keeps[row.output + j]); });
    }
  }

  // Gradients of the states before the step that the iteration took last.
  __device__ static void complete(const Args<T>& a, bool reset, int64_t at, const Fixed& fixed, const S (&sum)[1],
                                  const Carry& carry, S (&ds)[kEnd]) {
    ds[0] = kProjects ? sum[0] : carry.s[0] + fixed.masked(a.p, sum[0]);
#pragma unroll
    for (int i = 1; i < kEnd; ++i) ds[i] = carry.s[i];
    if (reset) divert<kFirst>(a, at, ds);
  }

  // reset: of the step before.
  __device__ static void step(const Args<T>& a, const Row& row, bool reset, int64_t at, const Fixed& fixed,
                              const Inputs& in, const S (&sum)[1], Carry* carry, Made* made, S (&out)[G]) {
    S ds[kEnd], saved[A], prev[kEnd] = {}, past[kEnd] = {};
    complete(a, reset, at, fixed, sum, *carry, ds);
#pragma unroll
    for (int i = kFirst; i < kEnd; ++i) carry->s[i] = ds[i];
#pragma unroll
    for (int k = 0; k < A; ++k) saved[k] = device::widen(in.saved[k]);
#pragma unroll
    for (int i = kFirst; i < kEnd; ++i) {
      const Zone& zone = a.p.states[i].zone;
      prev[i] = state_before(a.p, row, at, fixed, i, in.prev[i]);
      ds[i] += device::widen(in.dstep[i]);
      if (zone) past[i] = zoneout_bypass(kept<S>(zone, in.keeps >> i & 1), &ds[i]);
    }
    made->h_prev = kProjects ? S(0) : fixed.masked(a.p, prev[0]);
#pragma unroll
    for (int q = 0; q < Q; ++q) made->dgates[q] = 0;
    Cell::backward(saved, prev, ds, made->dgates);
    if (row.alive) {
#pragma unroll
      for (int i = kFirst; i < kEnd; ++i) carry->s[i] = ds[i] + past[i];
    } else {
#pragma unroll
      for (int q = 0; q < Q; ++q) made->dgates[q] = 0;
    }
#pragma unroll
    for (int g = 0; g < G; ++g) out[g] = made->dgates[g < G - 1 ? g : Q - 1];  // dr
  }

  template <class Each>
  __device__ static void store(const Args<T>& a, Each&& each) {
#pragma unroll
    for (int q = 0; q < Q; ++q)
      each([&](const Row& row, int64_t j, const Made& made) {
        a.g.steps.dgates[row.record * Q + q * a.p.shape.hidden + j] = device::narrow<T>(made.dgates[q]);
      });
    if (!kProjects) store_h_prev(a.g.steps.h_prev, each);
  }

  __device__ static void finish(const Args<T>& a, int64_t at, bool reset, const Fixed& fixed, const S (&sum)[1],
                                const Carry& carry) {
    S ds[kEnd];
    complete(a, reset, at, fixed, sum, carry, ds);
    store_first_gradients<kFirst>(a, at, ds);
  }
};

// The gradient of h where there is a projection: dh = dr W_hh.
template <class Cell, class T>
struct ProjectBackward {
  using S = Arithmetic<T>;
  static constexpr int kTiles = 1, kPlanesIn = Cell::kGates, kPlanesOut = 1, kExtraSteps = 1;
  static constexpr bool kBackward = true, kTransposed = true;

  using Carry = Carried<T, 0, 1>;
  using Fixed = cuda::Fixed<T, 0, 1>;
  struct Inputs {
    T prev, dstep;
    uint32_t keeps;
  };
  struct Made {
    S dh, h_prev;
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
    return {last ? device::widen(last[it.state(n, j)]) : S(0)};
  }

  template <class Each>
  __device__ static void read(const Args<T>& a, Each&& each) {
    if (a.g.steps.h_prev)
      each([&](const Row& row, int64_t j, Inputs& in) { read_state_before(row, a.p.states[0], j, &in.prev); });
    if (const T* dsteps = a.g.states[0].steps)
      each([&](const Row& row, int64_t j, Inputs& in) { in.dstep = dsteps[row.output + j]; });
    if (const bool* keeps = a.p.states[0].zone.keeps)
      each([&](const Row& row, int64_t j, Inputs& in) { in.keeps = keeps[row.output + j]; });
  }

  __device__ static void step(const Args<T>& a, const Row& row, bool reset, int64_t at, const Fixed& fixed,
                              const Inputs& in, const S (&sum)[1], Carry* carry, Made* made, S (&out)[1]) {
    const Zone& zone = a.p.states[0].zone;
    S dh[1] = {carry->s[0] + fixed.masked(a.p, sum[0])}, past = 0;
    if (reset) divert<0>(a, at, dh);
    carry->s[0] = dh[0];
    dh[0] += device::widen(in.dstep);
    if (zone) past = zoneout_bypass(kept<S>(zone, in.keeps), &dh[0]);
    if (row.alive) carry->s[0] = past;
    out[0] = made->dh = row.alive ? dh[0] : S(0);
    made->h_prev = fixed.masked(a.p, state_before(a.p, row, at, fixed, 0, in.prev));
  }

  template <class Each>
  __device__ static void store(const Args<T>& a, Each&& each) {
    each([&](const Row& row, int64_t j, const Made& made) {
      a.g.steps.dh_steps[row.record + j] = device::narrow<T>(made.dh);
    });
    store_h_prev(a.g.steps.h_prev, each);
  }

  __device__ static void finish(const Args<T>& a, int64_t at, bool reset, const Fixed& fixed, const S (&sum)[1],
                                const Carry& carry) {
    S dh[1] = {carry.s[0] + fixed.masked(a.p, sum[0])};
    if (reset) divert<0>(a, at, dh);
    store_first_gradients<0>(a, at, dh);
  }
};

}  // namespace fusedrnn::cuda
