// What every kernel gets, and the order in which it takes the steps of a direction: backward takes them in the opposite
// order.
#pragma once

#include "../timeline.h"
#include "device.cuh"

namespace fusedrnn::cuda {

template <class T>
struct Args {
  using S = Arithmetic<T>;

  ScanParams<T> p;
  ScanGrads<T> g;
  // by state, [D, N, width]
  S* carry[kMaxStates];    // stepwise: the state, or its gradient, between two steps
  S* dresets[kMaxStates];  // sums of the gradients of the reset state
};

// What a pair of (row, unit) carries from step to step: states kFirst .. kEnd - 1, or their gradients. The others,
// which another stage carries, stay zero.
template <class T, int kFirst, int kEnd>
struct Carried {
  Arithmetic<T> s[kEnd];

  // Between two kernels; at: the pair's offset into [D, N, width].
  __device__ static Carried load(const Args<T>& a, int64_t at) {
    Carried carried{};
#pragma unroll
    for (int i = kFirst; i < kEnd; ++i) carried.s[i] = a.carry[i][at];
    return carried;
  }
  __device__ void store(const Args<T>& a, int64_t at) const {
#pragma unroll
    for (int i = kFirst; i < kEnd; ++i) a.carry[i][at] = s[i];
  }
};

// A step, and the step that the iteration takes after it.
struct Steps : Step {
  Step next;
};

template <class T>
class StepIterator : public Timeline<T> {
 public:
  using Timeline<T>::p;
  using Timeline<T>::d;

  __device__ StepIterator(const ScanParams<T>& params, int direction, bool backward)
      : Timeline<T>{params, direction}, from_the_end((direction == 1) != backward) {}

  // Number i, from 0; -1 is what comes before. Reads the offsets of both steps, once for all that is asked about them.
  __device__ Steps steps(int64_t i) const {
    const int64_t t = from_the_end ? p.shape.steps - 1 - i : i;
    return {this->at(t), this->at(from_the_end ? t - 1 : t + 1)};
  }

  // Is row n's state replaced between this step and the next? The mask of the later one tells.
  __device__ bool reset_between(const Steps& s, int64_t n) const {
    return from_the_end ? this->reset_before(s, n) : this->reset_before(s.next, n);
  }

  // Does unit j of a packed row keep its state?
  __device__ bool keeps(const Zone& zone, int64_t row, int64_t width, int64_t j) const {
    return zone.keeps && zone.keeps[this->output(row, width, j)];
  }
  // h, or its gradient, on its way through W_hh.
  __device__ Arithmetic<T> masked(int64_t n, int64_t k, Arithmetic<T> h) const {
    return p.h_mask ? h * device::widen(p.h_mask[this->state(n, p.shape.projected, k)]) : h;
  }

  const bool from_the_end;
};

// The fraction of its old value that a unit keeps in a step.
template <class S>
__device__ S kept(const Zone& zone, bool keeps) {
  return zone.keeps ? S(keeps) : static_cast<S>(zone.fraction);
}

}  // namespace fusedrnn::cuda
