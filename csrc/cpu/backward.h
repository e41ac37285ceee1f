// Backward driver: the same rows, walked the other way. It emits the gate gradients of every step; what can be summed
// over steps (the weights' gradients) is left to one GEMM each.
#pragma once

#include "steps.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class Cell, class T>
class Backward {
  using S = Arithmetic<T>;
  using V = Vec<S>;
  static constexpr int G = Cell::kGates, A = Cell::kSaved, Q = Cell::kGrads;
  static constexpr int64_t kBlockRows = 8 * kTileRows;
  static constexpr bool kHasCell = Cell::kStates == 2;

 public:
  Backward(const ScanParams<T>& params, const ScanGrads<T>& grads)
      : p(params),
        g(grads),
        s(params.shape),
        H_(padded<S>(s.hidden)),
        P_(padded<S>(s.projected)),
        w_hh(s.directions * G * s.hidden * P_),
        w_hr(p.weights[0].w_hr ? s.directions * s.projected * H_ : 0),
        zeros(s.hidden + s.projected),
        zero_bias(kPanel<S>) {
    zero<T>(zeros, s.hidden + s.projected);
    zero<S>(zero_bias, kPanel<S>);
    parallel_for(s.directions, [&](int64_t d) {
      const Weights<T>& w = p.weights[d];
      pack(w.w_hh, s.projected, 1, G * s.hidden, s.projected, w_hh + d * G * s.hidden * P_);
      if (w.w_hr) pack(w.w_hr, s.hidden, 1, s.projected, s.hidden, w_hr + d * s.projected * H_);
    });
  }

  void run() {
    double flops = 2.0 * s.packed_rows * s.directions * G * s.hidden * s.projected;
    for_row_ranges(p, flops, [&](int d, int64_t begin, int64_t end) { walk(d, begin, end); });
  }

 private:
  struct Carry {  // gradient of the state, on its way to the step before: [rows, P_] and [rows, H_]
    S *h, *c, *reset_h, *reset_c;
  };

  void walk(int d, int64_t begin, int64_t end) {
    Walk<T> walk{p, d, zeros};
    int64_t count = end - begin, reset_count = g.dreset_h || g.dreset_c ? count : 0;
    Buffer<S> h(count * P_), c(kHasCell ? count * H_ : 0), reset_h(reset_count * P_), reset_c(reset_count * H_);
    Buffer<S> tile(kBlockRows * kPanel<S>), hidden(p.weights[d].w_hr ? count * H_ : 0);
    Buffer<int64_t> live(count);
    Buffer<const T*> a(count);
    Carry carry{h, c, reset_h, reset_c};
    zero<S>(reset_h, reset_count * P_);
    zero<S>(reset_c, reset_count * H_);
    start(d, begin, end, carry);
    for (int64_t i = s.steps - 1; i >= 0; --i) {
      int64_t t = walk.step(i), rows = live_rows(walk, t, begin, end, live);
      take_step(walk, t, rows, live, begin, a, tile, hidden, carry);
    }
    for (int64_t n = begin; n < end; ++n) {
      int64_t own = d * s.rows + n, m = n - begin;
      narrow_row(g.dh0 + own * s.projected, carry.h + m * P_, s.projected);
      if (kHasCell) narrow_row(g.dc0 + own * s.hidden, carry.c + m * H_, s.hidden);
      if (g.dreset_h) narrow_row(g.dreset_h + own * s.projected, carry.reset_h + m * P_, s.projected);
      if (g.dreset_c) narrow_row(g.dreset_c + own * s.hidden, carry.reset_c + m * H_, s.hidden);
    }
  }

  void start(int d, int64_t begin, int64_t end, const Carry& carry) {
    zero(carry.h, (end - begin) * P_);
    if (kHasCell) zero(carry.c, (end - begin) * H_);
    for (int64_t n = begin; n < end; ++n) {
      int64_t own = d * s.rows + n, m = n - begin;
      if (g.dh_n) widen_row(carry.h + m * P_, g.dh_n + own * s.projected, s.projected);
      if (kHasCell && g.dc_n) widen_row(carry.c + m * H_, g.dc_n + own * s.hidden, s.hidden);
    }
  }

  // Lists the rows that take step t; what is emitted for those frozen in it is zero.
  int64_t live_rows(const Walk<T>& walk, int64_t t, int64_t begin, int64_t end, int64_t* live) {
    int64_t count = 0, step_rows = walk.rows(t);
    for (int64_t n = begin; n < end && n < step_rows; ++n) {
      if (walk.alive(t, n)) {
        live[count++] = n;
        continue;
      }
      int64_t r = walk.d * s.packed_rows + walk.row(t, n);
      zero(g.dgates + r * Q * s.hidden, Q * s.hidden);
      zero(g.h_prev + r * s.projected, s.projected);
      if (g.dh_steps) zero(g.dh_steps + r * s.projected, s.projected);
    }
    return count;
  }

  void take_step(const Walk<T>& walk, int64_t t, int64_t rows, const int64_t* live, int64_t begin, const T** a,
                 S* tile, S* hidden, const Carry& carry) {
    int d = walk.d;
    int64_t offset = d * s.packed_rows + p.batch.offsets[t];
    for (int64_t m = 0; m < rows; ++m) {
      int64_t n = live[m], r = offset + n;
      S* dh = carry.h + (n - begin) * P_;
      if (g.dy) add_row(dh, g.dy + (walk.row(t, n) * s.directions + d) * s.projected, s.projected);
      copy(g.h_prev + r * s.projected, walk.h_before(t, n), s.projected);
      if (g.dh_steps) {
        narrow_row(g.dh_steps + r * s.projected, dh, s.projected);
        a[m] = g.dh_steps + r * s.projected;
        zero(dh, P_);
      }
    }
    if (g.dh_steps)
      for (int64_t j = 0; j < s.hidden; j += kPanel<S>)
        multiply<T, S>(rows, block(s.hidden - j), a, s.projected,
                       panel_at<S>(w_hr + d * s.projected * H_, s.projected, j), zero_bias, 0, hidden + j, H_);
    for (int64_t m = 0; m < rows; ++m) {
      int64_t n = live[m];
      a[m] = g.dgates + (offset + n) * Q * s.hidden;
      S* dh = g.dh_steps ? hidden + m * H_ : carry.h + (n - begin) * P_;
      differentiate(walk, t, n, dh, carry.c + (n - begin) * H_, const_cast<T*>(a[m]));
    }
    for (int64_t j = 0; j < s.projected; j += kPanel<S>)
      for (int64_t m = 0; m < rows; m += kBlockRows) {
        int64_t block_rows = rows - m < kBlockRows ? rows - m : kBlockRows, columns = block(s.projected - j);
        through_w_hh(d, block_rows, columns, j, a + m, tile);
        for (int64_t b = 0; b < block_rows; ++b) {
          S* dh = carry.h + (live[m + b] - begin) * P_ + j;
          for (int64_t v = 0; v < columns; v += V::kLanes)
            (V::load(dh + v) + V::load(tile + b * kPanel<S> + v)).store(dh + v);
        }
      }
    for (int64_t m = 0; m < rows; ++m)
      if (walk.cut(t, live[m])) divert(live[m] - begin, carry);
  }

  // The cell, for all units of one row. dh and dc: gradients after the step in, before it out.
  void differentiate(const Walk<T>& walk, int64_t t, int64_t n, S* dh, S* dc, T* dgates) {
    int d = walk.d;
    const T* saved = p.saved + (d * s.packed_rows + walk.row(t, n)) * A * s.hidden;
    const T* before = kHasCell ? walk.c_before(t, n) : walk.h_before(t, n);
    const T* dc_step = g.dc_steps ? g.dc_steps + (walk.row(t, n) * s.directions + d) * s.hidden : nullptr;
    for (int64_t j = 0; j < s.hidden; j += V::kLanes) {
      int64_t left = s.hidden - j;
      V keep[A], prev[2], ds[2], dgate[Q];
#pragma GCC unroll 4
      for (int i = 0; i < A; ++i) keep[i] = V::load(saved + i * s.hidden + j, left);
      prev[kHasCell] = V::load(before + j, left);
      ds[0] = V::load(dh + j);
      if constexpr (kHasCell) {
        ds[1] = V::load(dc + j);
        if (dc_step) ds[1] = ds[1] + V::load(dc_step + j, left);
      }
      Cell::backward(keep, prev, ds, dgate);
      ds[0].store(dh + j);
      if constexpr (kHasCell) ds[1].store(dc + j);
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) dgate[q].store(dgates + q * s.hidden + j, left);
    }
  }

  // tile = dr @ W_hh[:, j .. j + columns). dr is the first G-1 planes of dgates and its last one.
  void through_w_hh(int d, int64_t rows, int64_t columns, int64_t j, const T* const* dgates, S* tile) {
    int64_t K = G * s.hidden, lead = Q == G ? K : (G - 1) * s.hidden;
    const S* panel = panel_at<S>(w_hh + d * K * P_, K, j);
    multiply<T, S>(rows, columns, dgates, lead, panel, zero_bias, 0, tile, kPanel<S>);
    if constexpr (Q > G) {
      const T* last[kBlockRows];
      for (int64_t m = 0; m < rows; ++m) last[m] = dgates[m] + (Q - 1) * s.hidden;
      multiply<T, S>(rows, columns, last, s.hidden, panel + lead * padded<S>(columns), tile, kPanel<S>, tile,
                     kPanel<S>);
    }
  }

  // The state before the step was the reset state: its gradient ends here.
  void divert(int64_t m, const Carry& carry) {
    if (g.dreset_h) add_row(carry.reset_h + m * P_, carry.h + m * P_, P_);
    zero(carry.h + m * P_, P_);
    if (!kHasCell) return;
    if (g.dreset_c) add_row(carry.reset_c + m * H_, carry.c + m * H_, H_);
    zero(carry.c + m * H_, H_);
  }

  static int64_t block(int64_t columns) { return columns < kPanel<S> ? columns : kPanel<S>; }

  const ScanParams<T>& p;
  const ScanGrads<T>& g;
  const Shape& s;
  int64_t H_, P_;   // H and P, padded to whole vectors
  Buffer<S> w_hh;   // [D] packed [G*H, P_]
  Buffer<S> w_hr;   // [D] packed [P, H_]
  Buffer<T> zeros;
  Buffer<S> zero_bias;
};

template <class T>
void scan_backward(CellKind kind, const ScanParams<T>& params, const ScanGrads<T>& grads) {
  visit(kind, [&](auto cell) { Backward<decltype(cell), T>(params, grads).run(); });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
