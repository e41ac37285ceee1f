// What every kernel gets, and which rows take which step. Backward walks a direction's steps in the opposite order.
#pragma once

#include "device.cuh"

namespace fusedrnn::cuda {

template <class T>
struct Args {
  using S = Arithmetic<T>;

  ScanParams<T> p;
  ScanGrads<T> g;
  S* carry_h;   // [D, N, P]  stepwise: the state, or its gradient, between two steps
  S* carry_c;   // [D, N, H]
  S* dreset_h;  // [D, N, P]  sums of what resets divert
  S* dreset_c;  // [D, N, H]
};

// What a pair of (row, unit) takes from step to step: its state, or the gradient of it, as far as it has one.
template <class T, bool kHidden, bool kCell>
struct Carried {
  Arithmetic<T> h, c;

  // Between two kernels; own: the pair's place in [D, N, width].
  __device__ static Carried load(const Args<T>& a, int64_t own) {
    return {kHidden ? a.carry_h[own] : Arithmetic<T>(0), kCell ? a.carry_c[own] : Arithmetic<T>(0)};
  }
  __device__ void store(const Args<T>& a, int64_t own) const {
    if (kHidden) a.carry_h[own] = h;
    if (kCell) a.carry_c[own] = c;
  }
};

// Zoneout: what a state becomes in a step, from what it was and what the cell has made of it.
template <class S>
__device__ S zone_out(const Zone& zone, bool keeps, S old, S fresh) {
  if (zone.keeps) return keeps ? old : fresh;
  if (zone.share == 0) return fresh;
  return zone.share == 1 ? old : fresh + static_cast<S>(zone.share) * (old - fresh);
}

// One step of a walk, and the step the walk takes next. A step outside of time has no rows.
struct Step {
  int64_t t, first, rows;  // its packed rows are first .. first + rows - 1
  int64_t next_t, next_first, next_rows;
};

template <class T>
class Walk {
 public:
  __device__ Walk(const ScanParams<T>& params, int direction, bool backward)
      : p(params), d(direction), from_the_end((direction == 1) != backward) {}

  // Number i of the walk, from 0; -1 is what comes before.
  __device__ Step step(int64_t i) const {
    Step s;
    s.t = from_the_end ? p.shape.steps - 1 - i : i;
    s.next_t = from_the_end ? s.t - 1 : s.t + 1;
    rows_of(s.t, &s.first, &s.rows);
    rows_of(s.next_t, &s.next_first, &s.next_rows);
    return s;
  }

  __device__ bool alive(const Step& s, int64_t n) const { return alive(s.t, s.rows, n); }
  __device__ bool next_alive(const Step& s, int64_t n) const { return alive(s.next_t, s.next_rows, n); }

  // Is row n cut between this step and the next? The mask of the later one tells.
  __device__ bool cut(const Step& s, int64_t n) const {
    if (!p.batch.reset) return false;
    return from_the_end ? alive(s, n) && p.batch.reset[s.first + n]
                        : next_alive(s, n) && p.batch.reset[s.next_first + n];
  }

  // Indices into [D, N, width], [R, D, width] and [D, R, planes, H].
  __device__ int64_t state(int64_t n, int64_t width, int64_t j) const { return (d * p.shape.rows + n) * width + j; }
  __device__ int64_t output(int64_t row, int64_t width, int64_t j) const {
    return (row * p.shape.directions + d) * width + j;
  }
  __device__ int64_t record(int64_t row, int planes, int plane, int64_t j) const {
    return ((d * p.shape.packed_rows + row) * planes + plane) * p.shape.hidden + j;
  }

  // Does unit j of a packed row keep its state?
  __device__ bool keeps(const Zone& zone, int64_t row, int64_t width, int64_t j) const {
    return zone.keeps && zone.keeps[output(row, width, j)];
  }
  // h, or its gradient, on its way through W_hh.
  __device__ Arithmetic<T> masked(int64_t n, int64_t k, Arithmetic<T> h) const {
    return p.h_mask ? h * device::widen(p.h_mask[state(n, p.shape.projected, k)]) : h;
  }

  const ScanParams<T>& p;
  const int d;
  const bool from_the_end;

 private:
  __device__ void rows_of(int64_t t, int64_t* first, int64_t* rows) const {
    bool exists = t >= 0 && t < p.shape.steps;
    const int64_t* offsets = p.batch.offsets;
    *first = !exists ? 0 : offsets ? offsets[t] : t * p.shape.rows;
    *rows = !exists ? 0 : offsets ? offsets[t + 1] - *first : p.shape.rows;
  }
  __device__ bool alive(int64_t t, int64_t rows, int64_t n) const {
    return n < rows && (!p.batch.lengths || t < p.batch.lengths[n]);
  }
};

}  // namespace fusedrnn::cuda
