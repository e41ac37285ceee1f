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

  // A padded batch with nothing that a plain call of torch.nn's layers does not have?
  bool plain() const {
    bool options = p.batch.offsets || p.batch.lengths || p.batch.reset || p.h_mask || g.steps.h_prev;
    for (int i = 0; i < kMaxStates; ++i)
      options = options || p.states[i].zone || p.states[i].reset || g.states[i].reset;
    return !options;
  }
  // The same with nulls that the compiler sees, if plain.
  FUSEDRNN_FN Args without_options() const {
    Args a = *this;
    a.p.batch = {};
    a.p.h_mask = nullptr;
    a.g.steps.h_prev = nullptr;
    for (int i = 0; i < kMaxStates; ++i) {
      a.p.states[i].zone = {};
      a.p.states[i].reset = nullptr;
      a.g.states[i].reset = nullptr;
      a.dresets[i] = nullptr;
    }
    return a;
  }
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

// A step, and the step that the iteration takes after it, if it is not the last.
struct Steps : Step {
  Step next;
  bool last;
};

// A batch row in a step. Its flags mean nothing for a row beyond a padded batch.
struct Row {
  int64_t record;               // offset of its first unit in [D, R, width]
  int64_t output, next_output;  // and in [R, D, width]
  bool there = true;            // is it one of the step's rows?
  bool alive = true;            // does it take the step?
  bool goes_on = false;         // does it take the next?
  bool reset = false;           // is its state replaced between the two?
};

template <class T>
class StepIterator : public Timeline<T> {
 public:
  using Timeline<T>::p;
  using Timeline<T>::d;

  // width: of the rows of the stage.
  __device__ StepIterator(const ScanParams<T>& params, int direction, bool backward, int64_t width)
      : Timeline<T>{params, direction},
        width_(width),
        from_the_end_((direction == 1) != backward),
        record_step_((from_the_end_ ? -params.shape.rows : params.shape.rows) * width),
        output_step_(record_step_ * params.shape.directions) {}

  __device__ int64_t width() const { return width_; }
  // Offset of unit j in [D, N, width].
  __device__ int64_t state(int64_t n, int64_t j) const { return Timeline<T>::state(n, width_, j); }

  // Number i, from 0; -1 is what comes before.
  __device__ Step step(int64_t i) const { return this->at(from_the_end_ ? p.shape.steps - 1 - i : i); }
  __device__ Steps steps(int64_t i) const { return {step(i), step(i + 1), i + 1 == p.shape.steps}; }
  // The one after s, which must be there.
  __device__ Step after(const Step& s) const {
    const int64_t forth = from_the_end_ ? -1 : 1;
    if (p.batch.offsets) return this->at(s.t + forth);
    return {s.t + forth, s.first + forth * p.shape.rows, p.shape.rows};
  }

  __device__ int64_t length(int64_t n) const {
    return p.batch.lengths && n < p.shape.rows ? p.batch.lengths[n] : p.shape.steps;
  }
  // length: the row's.
  __device__ Row row(const Steps& s, int64_t n, int64_t length) const {
    Row row;
    row.record = (d * p.shape.packed_rows + s.first + n) * width_;
    row.output = this->output(s.first + n, width_, 0);
    look_ahead(s, n, length, &row);
    return row;
  }
  // From the step before to this.
  __device__ void advance(const Steps& s, int64_t n, int64_t length, Row* row) const {
    if (p.batch.offsets) {
      *row = this->row(s, n, length);
      return;
    }
    row->record += record_step_;
    row->output += output_step_;
    look_ahead(s, n, length, row);
  }
  // Is row n's state replaced before the first step?
  __device__ bool reset_before_all(int64_t n) const {
    if (!p.batch.reset || from_the_end_) return false;
    Steps s = steps(-1);
    s.last = p.shape.steps == 0;
    return row(s, n, length(n)).reset;
  }

 private:
  __device__ void look_ahead(const Steps& s, int64_t n, int64_t length, Row* row) const {
    row->there = row->alive = true, row->goes_on = !s.last, row->reset = false;
    if (p.batch.offsets) {
      row->there = row->alive = n < s.rows;
      row->goes_on = row->goes_on && n < s.next.rows;
      row->next_output = this->output(s.next.first + n, width_, 0);
    } else {
      row->next_output = row->output + output_step_;
    }
    if (p.batch.lengths) {
      row->alive = row->alive && s.t < length;
      row->goes_on = row->goes_on && s.next.t < length;
    }
    if (p.batch.reset && n < p.shape.rows && (from_the_end_ ? row->alive : row->goes_on))
      row->reset = p.batch.reset[(from_the_end_ ? s.first : s.next.first) + n];  // the mask of the later one tells
  }

  const int64_t width_;
  const bool from_the_end_;
  const int64_t record_step_, output_step_;  // of a padded batch
};

__device__ inline void set_bit(uint32_t* bits, int i, bool value) {
  *bits = (*bits & ~(1u << i)) | uint32_t{value} << i;
}

// The fraction of its old value that a unit keeps in a step.
template <class S>
__device__ S kept(const Zone& zone, bool keeps) {
  return zone.keeps ? S(keeps) : static_cast<S>(zone.fraction);
}

}  // namespace fusedrnn::cuda
