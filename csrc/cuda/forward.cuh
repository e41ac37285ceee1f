// Forward: what becomes of one unit of one row in one step, once its recurrent sums are there.
//
// A stage is a product and what is done with its sums, which are of (row n, unit j) pairs:
//   read()     loads what the step before does not make, ahead of the step, of all pairs that take it
//   step()     makes the state after the step, and what the next product sums over
//   store()    writes what step() made, of all pairs, while that is on its way to the next product
//   finish()   after the last step
// and says
//   kTiles       sums of a pair
//   kPlanesIn    planes of values that its product sums over
//   kPlanesOut   values that a pair hands to the next product
//   kExtraSteps  products beyond the last step, whose sums finish() gets
//   Carry        what a pair takes from step to step
//   Fixed        what it needs in every step
//   Inputs       what read() reads, as stored
//   Made         what store() stores
#pragma once

#include "step_iterator.cuh"

namespace fusedrnn::cuda {

// What a pair needs in every step; at: its offset into [D, N, width].
template <class T, int kFirst, int kEnd>
struct Fixed {
  Arithmetic<T> mask;  // what h is multiplied by on its way into W_hh
  T initial[kEnd];     // the initial states, for the backward pass

  __device__ static Fixed load(const ScanParams<T>& p, int64_t at, bool backward) {
    Fixed fixed{};
#pragma unroll
    for (int i = kFirst; i < kEnd; ++i)
      if (backward) fixed.initial[i] = p.states[i].initial[at];
    if (p.h_mask && kFirst == 0) fixed.mask = device::widen(p.h_mask[at]);
    return fixed;
  }
  __device__ Arithmetic<T> masked(const ScanParams<T>& p, Arithmetic<T> h) const { return p.h_mask ? h * mask : h; }
};

template <class T>
__device__ Arithmetic<T> reset_state(const State<T>& state, int64_t at) {
  return state.reset ? device::widen(state.reset[at]) : Arithmetic<T>(0);
}

template <class T>
__device__ Arithmetic<T> first_state(const State<T>& state, bool reset, int64_t at) {
  return reset ? reset_state(state, at) : device::widen(state.initial[at]);
}

// Of states kFirst .. kEnd - 1: carried to the next step, from what the step made of them.
template <int kFirst, int kEnd, class T>
__device__ void carry_on(const ScanParams<T>& p, const Row& row, int64_t at, const Arithmetic<T> (&state)[kEnd],
                         Carried<T, kFirst, kEnd>* carry) {
#pragma unroll
  for (int i = kFirst; i < kEnd; ++i) carry->s[i] = row.reset && row.goes_on ? reset_state(p.states[i], at) : state[i];
}

// Stores state i after a step.
template <class T, class Each>
__device__ void store_steps(T* steps, int i, Each&& each) {
  if (steps)
    each([&](const Row& row, int64_t j, const auto& made) {
      steps[row.output + j] = row.alive ? device::narrow<T>(made.state[i]) : T{};
    });
}

// The cell. With a projection its hidden state goes to the next stage, which makes h of it and carries h.
template <class Cell, class T, bool kProjects>
struct CellForward {
  using S = Arithmetic<T>;
  static constexpr int G = Cell::kGates, A = Cell::kSaved, kFirst = kProjects ? 1 : 0, kEnd = Cell::kStates;
  static constexpr int kTiles = G, kPlanesIn = 1, kPlanesOut = 1, kExtraSteps = 0;
  static constexpr bool kBackward = false, kTransposed = false;

  using Carry = Carried<T, kFirst, kEnd>;
  using Fixed = cuda::Fixed<T, kFirst, kEnd>;
  struct Inputs {
    T x[G];
    uint32_t keeps;  // a bit a state
  };
  struct Made {
    S keep[A], state[kEnd];
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
    const int64_t at = it.state(n, k);
    const S h = first_state(it.p.states[0], it.reset_before_all(n), at);
    return it.p.h_mask ? h * device::widen(it.p.h_mask[at]) : h;
  }

  __device__ static Carry start(const Args<T>& a, const StepIterator<T>& it, int64_t n, int64_t j) {
    const bool reset = it.reset_before_all(n);
    Carry carry{};
#pragma unroll
    for (int i = kFirst; i < kEnd; ++i) carry.s[i] = first_state(a.p.states[i], reset, it.state(n, j));
    return carry;
  }

  template <class Each>
  __device__ static void read(const Args<T>& a, Each&& each) {
    const ScanParams<T>& p = a.p;
    const int planes = p.saved ? A : G;
    each([&](const Row& row, int64_t j, Inputs& in) {
#pragma unroll
      for (int g = 0; g < G; ++g) in.x[g] = p.gates_x[row.record * planes + g * p.shape.hidden + j];
    });
#pragma unroll
    for (int i = kFirst; i < kEnd; ++i)
      if (const bool* keeps = p.states[i].zone.keeps)
        each([&](const Row& row, int64_t j, Inputs& in) { set_bit(&in.keeps, i, keeps[row.output + j]); });
  }

  __device__ static void step(const Args<T>& a, const Row& row, bool, int64_t at, const Fixed& fixed, const Inputs& in,
                              const S (&r)[G], Carry* carry, Made* made, S (&out)[1]) {
    const ScanParams<T>& p = a.p;
    S(&state)[kEnd] = made->state, x[G];
#pragma unroll
    for (int i = 0; i < kEnd; ++i) state[i] = carry->s[i];
#pragma unroll
    for (int g = 0; g < G; ++g) x[g] = device::widen(in.x[g]);
    Cell::forward(x, r, state, made->keep);
#pragma unroll
    for (int i = kFirst; i < kEnd; ++i)
      if (const Zone& zone = p.states[i].zone)
        state[i] = blend(kept<S>(zone, in.keeps >> i & 1), carry->s[i], state[i]);
    state[0] = device::widen(device::narrow<T>(state[0]));  // the next step goes on from the h that is stored
    if (!row.alive) {
#pragma unroll
      for (int i = 0; i < kEnd; ++i) state[i] = carry->s[i];  // with a projection no h, and its place is 0
#pragma unroll
      for (int k = 0; k < A; ++k) made->keep[k] = 0;
    }
    carry_on(p, row, at, state, carry);
    out[0] = kProjects ? state[0] : fixed.masked(p, carry->s[0]);
  }

  template <class Each>
  __device__ static void store(const Args<T>& a, Each&& each) {
    const ScanParams<T>& p = a.p;
    if (p.saved)
      each([&](const Row& row, int64_t j, const Made& made) {
#pragma unroll
        for (int k = 0; k < A; ++k) p.saved[row.record * A + k * p.shape.hidden + j] = device::narrow<T>(made.keep[k]);
      });
#pragma unroll
    for (int i = kFirst; i < kEnd; ++i) store_steps(p.states[i].steps, i, each);
    if (kProjects && p.hidden)
      each([&](const Row& row, int64_t j, const Made& made) {
        p.hidden[row.record + j] = device::narrow<T>(made.state[0]);
      });
  }

  __device__ static void finish(const Args<T>& a, int64_t at, bool, const Fixed&, const S (&)[G], const Carry& carry) {
#pragma unroll
    for (int i = kFirst; i < kEnd; ++i) a.p.states[i].last[at] = device::narrow<T>(carry.s[i]);
  }
};

// h = W_hr hidden.
template <class T>
struct ProjectForward {
  using S = Arithmetic<T>;
  static constexpr int kTiles = 1, kPlanesIn = 1, kPlanesOut = 1, kExtraSteps = 0;
  static constexpr bool kBackward = false, kTransposed = false;

  using Carry = Carried<T, 0, 1>;
  using Fixed = cuda::Fixed<T, 0, 1>;
  struct Inputs {
    uint32_t keeps;
  };
  struct Made {
    S state[1];
  };

  FUSEDRNN_FN static int64_t width(const Shape& s) { return s.projected; }
  FUSEDRNN_FN static int64_t plane_depth(const Shape& s) { return s.hidden; }

  __device__ static T weight(const Weights<T>& w, const Shape& s, int, int64_t j, int, int64_t k) {
    return w.w_hr[j * s.hidden + k];
  }
  __device__ static S bias(const Weights<T>&, const Shape&, int, int64_t) { return S(0); }
  __device__ static S first(const StepIterator<T>&, int64_t, int64_t) { return S(0); }

  __device__ static Carry start(const Args<T>& a, const StepIterator<T>& it, int64_t n, int64_t j) {
    return {first_state(a.p.states[0], it.reset_before_all(n), it.state(n, j))};
  }
  template <class Each>
  __device__ static void read(const Args<T>& a, Each&& each) {
    if (const bool* keeps = a.p.states[0].zone.keeps)
      each([&](const Row& row, int64_t j, Inputs& in) { in.keeps = keeps[row.output + j]; });
  }

  __device__ static void step(const Args<T>& a, const Row& row, bool, int64_t at, const Fixed& fixed, const Inputs& in,
                              const S (&sum)[1], Carry* carry, Made* made, S (&out)[1]) {
    const Zone& zone = a.p.states[0].zone;
    const S h = zone ? blend(kept<S>(zone, in.keeps), carry->s[0], sum[0]) : sum[0];
    // the next step goes on from the h that is stored
    made->state[0] = row.alive ? device::widen(device::narrow<T>(h)) : carry->s[0];
    carry_on(a.p, row, at, made->state, carry);
    out[0] = fixed.masked(a.p, carry->s[0]);
  }
  template <class Each>
  __device__ static void store(const Args<T>& a, Each&& each) {
    store_steps(a.p.states[0].steps, 0, each);
  }
  __device__ static void finish(const Args<T>& a, int64_t at, bool, const Fixed&, const S (&)[1], const Carry& carry) {
    a.p.states[0].last[at] = device::narrow<T>(carry.s[0]);
  }
};

}  // namespace fusedrnn::cuda
