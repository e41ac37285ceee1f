// Time, resets and zoneout: which rows take which step and what becomes of their states, for the drivers of both
// devices.
#pragma once

#include "activations.h"
#include "scan.h"

namespace fusedrnn {

// A step and its packed rows, first .. first + rows - 1. A step outside of time has no rows.
struct Step {
  int64_t t, first, rows;
};

// One direction of a layer.
template <class T>
struct Timeline {
  const ScanParams<T>& p;
  int d;

  FUSEDRNN_FN Step at(int64_t t) const {
    if (t < 0 || t >= p.shape.steps) return {t, 0, 0};
    const int64_t* offsets = p.batch.offsets;
    if (!offsets) return {t, t * p.shape.rows, p.shape.rows};
    return {t, offsets[t], offsets[t + 1] - offsets[t]};
  }
  // Does batch row n take this step?
  FUSEDRNN_FN bool alive(const Step& s, int64_t n) const {
    return n < s.rows && (!p.batch.lengths || s.t < p.batch.lengths[n]);
  }
  // Is row n's state replaced between step s and the step before it in time? Direction 1 meets this after step s.
  FUSEDRNN_FN bool reset_before(const Step& s, int64_t n) const {
    return p.batch.reset && alive(s, n) && p.batch.reset[s.first + n];
  }

  // Offsets into [D, N, width], [R, D, width] and [D, R, planes, H]; row is a packed row.
  FUSEDRNN_FN int64_t state(int64_t n, int64_t width, int64_t j) const { return (d * p.shape.rows + n) * width + j; }
  FUSEDRNN_FN int64_t output(int64_t row, int64_t width, int64_t j) const {
    return (row * p.shape.directions + d) * width + j;
  }
  FUSEDRNN_FN int64_t record(int64_t row, int planes, int plane, int64_t j) const {
    return ((d * p.shape.packed_rows + row) * planes + plane) * p.shape.hidden + j;
  }
};

// A state of which zoneout keeps `fraction`. Selected at 0 and 1, so that NaN cannot leak from the other side.
template <class V>
FUSEDRNN_FN V blend(V fraction, V old, V fresh) {
  return where(V(1) <= fraction, old, where(fraction <= V(0), fresh, fresh + fraction * (old - fresh)));
}

// Splits the gradient of a state after the step: returns what zoneout passes to the state before it, and leaves the
// cell's part in ds.
template <class V>
FUSEDRNN_FN V zoneout_bypass(V fraction, V* ds) {
  V past = blend(fraction, *ds, V(0));
  *ds = blend(fraction, V(0), *ds);
  return past;
}

}  // namespace fusedrnn
