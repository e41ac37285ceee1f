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

#include "walk.cuh"

namespace fusedrnn::cuda {

// A state that has come out of step s is put down; returns the state before the walk's next step.
template <class T>
__device__ Arithmetic<T> put_down(const Walk<T>& walk, const Step& s, int64_t n, int64_t width, int64_t j, bool alive,
                                  Arithmetic<T> state, T* steps, T* last, const T* reset) {
  using S = Arithmetic<T>;
  if (steps && n < s.rows) steps[walk.output(s.first + n, width, j)] = device::narrow<T>(alive ? state : S(0));
  int64_t own = walk.state(n, width, j);
  if (!walk.next_alive(s, n)) last[own] = device::narrow<T>(state);  // a row that has ended puts down the same again
  if (!walk.cut(s, n)) return state;
  return reset ? device::widen(reset[own]) : S(0);
}

template <class T>
__device__ Arithmetic<T> first_state(const Walk<T>& walk, int64_t n, int64_t width, int64_t j, const T* initial,
                                     const T* reset) {
  int64_t own = walk.state(n, width, j);
  if (!walk.cut(walk.step(-1), n)) return device::widen(initial[own]);
  return reset ? device::widen(reset[own]) : Arithmetic<T>(0);
}

// The cell. With a projection it hands on the hidden state before it; the next stage makes h of it.
template <class Cell, class T, bool kProjects>
struct CellForward {
  using S = Arithmetic<T>;
  static constexpr int G = Cell::kGates, A = Cell::kSaved;
  static constexpr int kTiles = G, kPlanesIn = 1, kPlanesOut = 1, kExtraSteps = 0;
  static constexpr bool kBackward = false, kTransposed = false, kHasCell = Cell::kStates == 2;

  using Carry = Carried<T, !kProjects, kHasCell>;
  struct Inputs {
    T x[G];
    bool keeps_h, keeps_c;
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
  __device__ static S first(const Walk<T>& walk, int64_t n, int64_t k) {
    return walk.masked(n, k, first_state(walk, n, walk.p.shape.projected, k, walk.p.h0, walk.p.reset_h));
  }

  __device__ static Carry start(const Args<T>& a, const Walk<T>& walk, int64_t n, int64_t j) {
    Carry carry{};
    if (!kProjects) carry.h = first_state(walk, n, a.p.shape.hidden, j, a.p.h0, a.p.reset_h);
    if (kHasCell) carry.c = first_state(walk, n, a.p.shape.hidden, j, a.p.c0, a.p.reset_c);
    return carry;
  }

  __device__ static void read(const Args<T>& a, const Walk<T>& walk, const Step& s, int64_t n, int64_t j, Inputs* in) {
    if (!walk.alive(s, n)) return;
    const ScanParams<T>& p = a.p;
    int64_t row = s.first + n, H = p.shape.hidden;
    int planes = p.saved ? A : G;
#pragma unroll
    for (int g = 0; g < G; ++g) in->x[g] = p.gates_x[walk.record(row, planes, g, j)];
    if (!kProjects) in->keeps_h = walk.keeps(p.zone_h, row, H, j);
    if (kHasCell) in->keeps_c = walk.keeps(p.zone_c, row, H, j);
  }

  __device__ static void step(const Args<T>& a, const Walk<T>& walk, int64_t, const Step& s, int64_t n, int64_t j,
                              const Inputs& in, const S (&r)[G], Carry* carry, S (&out)[1]) {
    const ScanParams<T>& p = a.p;
    bool alive = walk.alive(s, n), there = n < s.rows;
    int64_t row = s.first + n, H = p.shape.hidden;
    S state[2] = {carry->h, carry->c}, keep[A] = {}, x[G];
    if (alive) {
#pragma unroll
      for (int g = 0; g < G; ++g) x[g] = device::widen(in.x[g]);
      Cell::forward(x, r, state, keep);
      if (!kProjects) state[0] = zone_out(p.zone_h, in.keeps_h, carry->h, state[0]);
      if (kHasCell) state[1] = zone_out(p.zone_c, in.keeps_c, carry->c, state[1]);
      state[0] = device::widen(device::narrow<T>(state[0]));  // the next step goes on from the h that is stored
    }
    if (there && p.saved)
#pragma unroll
      for (int k = 0; k < A; ++k) p.saved[walk.record(row, A, k, j)] = device::narrow<T>(keep[k]);
    if (kHasCell) carry->c = put_down(walk, s, n, H, j, alive, state[1], p.c_steps, p.c_n, p.reset_c);
    if constexpr (kProjects) {
      out[0] = state[0];  // 0 of a row that takes no step: this stage carries no h
      if (there && p.hidden) p.hidden[walk.record(row, 1, 0, j)] = device::narrow<T>(out[0]);
    } else {
      carry->h = put_down(walk, s, n, H, j, alive, state[0], p.y, p.h_n, p.reset_h);
      out[0] = walk.masked(n, j, carry->h);
    }
  }
};

// h = W_hr hidden.
template <class T>
struct ProjectForward {
  using S = Arithmetic<T>;
  static constexpr int kTiles = 1, kPlanesIn = 1, kPlanesOut = 1, kExtraSteps = 0;
  static constexpr bool kBackward = false, kTransposed = false;

  using Carry = Carried<T, true, false>;
  struct Inputs {
    bool keeps_h;
  };

  FUSEDRNN_FN static int64_t width(const Shape& s) { return s.projected; }
  FUSEDRNN_FN static int64_t plane_depth(const Shape& s) { return s.hidden; }

  __device__ static T weight(const Weights<T>& w, const Shape& s, int, int64_t j, int, int64_t k) {
    return w.w_hr[j * s.hidden + k];
  }
  __device__ static S bias(const Weights<T>&, const Shape&, int, int64_t) { return S(0); }
  __device__ static S first(const Walk<T>&, int64_t, int64_t) { return S(0); }

  __device__ static Carry start(const Args<T>& a, const Walk<T>& walk, int64_t n, int64_t j) {
    return {first_state(walk, n, a.p.shape.projected, j, a.p.h0, a.p.reset_h)};
  }
  __device__ static void read(const Args<T>& a, const Walk<T>& walk, const Step& s, int64_t n, int64_t j, Inputs* in) {
    if (walk.alive(s, n)) in->keeps_h = walk.keeps(a.p.zone_h, s.first + n, a.p.shape.projected, j);
  }

  __device__ static void step(const Args<T>& a, const Walk<T>& walk, int64_t, const Step& s, int64_t n, int64_t j,
                              const Inputs& in, const S (&sum)[1], Carry* carry, S (&out)[1]) {
    const ScanParams<T>& p = a.p;
    bool alive = walk.alive(s, n);
    S h = carry->h;
    if (alive) {
      h = zone_out(p.zone_h, in.keeps_h, h, sum[0]);
      h = device::widen(device::narrow<T>(h));  // the next step goes on from the h that is stored
    }
    carry->h = put_down(walk, s, n, p.shape.projected, j, alive, h, p.y, p.h_n, p.reset_h);
    out[0] = walk.masked(n, j, carry->h);
  }
};

}  // namespace fusedrnn::cuda
