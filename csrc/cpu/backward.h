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
        projects(params.weights[0].w_hr),
        H_(padded<S>(s.hidden)),
        P_(padded<S>(s.projected)),
        w_hh(s.directions * G * s.hidden * P_),
        w_hr(projects ? s.directions * s.projected * H_ : 0),
        dh(s.directions * s.rows * P_),
        dc(kHasCell ? s.directions * s.rows * H_ : 0),
        dhidden(projects ? s.directions * s.rows * H_ : 0),
        dreset_h(g.dreset_h ? s.directions * s.rows * P_ : 0),
        dreset_c(g.dreset_c ? s.directions * s.rows * H_ : 0),
        zeros(s.hidden + s.projected),
        zero_bias(kPanel<S>) {
    zero<T>(zeros, s.hidden + s.projected);
    zero<S>(zero_bias, kPanel<S>);
  }

  void run() {
    double flops = 2.0 * s.packed_rows * s.directions * G * s.hidden * s.projected;
    share_out<Cell>(p, flops, [&](const Share& share) {
      pack_weights(share);
      if (!share.splits_units) share.meet();
      if (share.row < share.row_end) walk(share);
    });
  }

 private:
  // Each thread packs a part: its own columns where units are split.
  void pack_weights(const Share& share) {
    const Weights<T>& w = p.weights[share.d];
    int64_t grain = share.splits_units ? V::kLanes : kPanel<S>, K = G * s.hidden;
    int64_t begin = part(s.projected, share.member, share.members, grain);
    int64_t end = part(s.projected, share.member + 1, share.members, grain);
    pack(w.w_hh + begin, end - begin, s.projected, K, w_hh + (share.d * P_ + begin) * K);
    if (!projects) return;
    begin = part(s.hidden, share.member, share.members, grain);
    end = part(s.hidden, share.member + 1, share.members, grain);
    pack(w.w_hr + begin, end - begin, s.hidden, s.projected, w_hr + (share.d * H_ + begin) * s.projected);
  }

  void walk(const Share& share) {
    int d = share.d;
    Walk<T> walk{p, d, zeros};
    int64_t count = share.row_end - share.row, outs = share.out_end - share.out, units = share.unit_end - share.unit;
    int64_t K = Q * s.hidden;
    Buffer<S> tile(kBlockRows * kPanel<S>),
        wide(kWidens<T, S> ? count * padded<S>(K > s.projected ? K : s.projected) : 0);
    Buffer<int64_t> live(count);
    Buffer<const T*> rows(count);
    Buffer<const S*> a(count);
    for (int64_t n = share.row; n < share.row_end; ++n) {
      int64_t own = d * s.rows + n, h = own * s.projected + share.out, c = own * s.hidden + share.unit;
      start(dh + own * P_ + share.out, g.dh_n ? g.dh_n + h : nullptr, outs);
      if (kHasCell) start(dc + own * H_ + share.unit, g.dc_n ? g.dc_n + c : nullptr, units);
      if (g.dreset_h) start<T>(dreset_h + own * P_ + share.out, nullptr, outs);
      if (g.dreset_c) start<T>(dreset_c + own * H_ + share.unit, nullptr, units);
    }
    for (int64_t i = s.steps - 1; i >= 0; --i) {
      int64_t t = walk.step(i), count = live_rows(share, walk, t, live);
      take_step(share, walk, t, count, live, rows, a, wide, tile);
    }
    for (int64_t n = share.row; n < share.row_end; ++n) {
      int64_t own = d * s.rows + n, h = own * s.projected + share.out, c = own * s.hidden + share.unit;
      narrow_row(g.dh0 + h, dh + own * P_ + share.out, outs);
      if (kHasCell) narrow_row(g.dc0 + c, dc + own * H_ + share.unit, units);
      if (g.dreset_h) narrow_row(g.dreset_h + h, dreset_h + own * P_ + share.out, outs);
      if (g.dreset_c) narrow_row(g.dreset_c + c, dreset_c + own * H_ + share.unit, units);
    }
  }

  template <class E>
  static void start(S* to, const E* given, int64_t count) {
    if (given)
      widen_row(to, given, count);
    else
      zero(to, padded<S>(count));
  }

  // Lists the rows that take step t; what is emitted for those frozen in it is zero.
  int64_t live_rows(const Share& share, const Walk<T>& walk, int64_t t, int64_t* live) {
    int64_t count = 0, step_rows = walk.rows(t), outs = share.out_end - share.out;
    for (int64_t n = share.row; n < share.row_end && n < step_rows; ++n) {
      if (walk.alive(t, n)) {
        live[count++] = n;
        continue;
      }
      int64_t r = walk.d * s.packed_rows + walk.row(t, n);
      for (int q = 0; q < Q; ++q) zero(g.dgates + (r * Q + q) * s.hidden + share.unit, share.unit_end - share.unit);
      if (g.h_prev) zero(g.h_prev + r * s.projected + share.out, outs);
      if (g.dh_steps) zero(g.dh_steps + r * s.projected + share.out, outs);
    }
    return count;
  }

  void take_step(const Share& share, const Walk<T>& walk, int64_t t, int64_t count, const int64_t* live, const T** rows,
                 const S** a, S* wide, S* tile) {
    int d = share.d;
    int64_t offset = d * s.packed_rows + p.batch.offsets[t], outs = share.out_end - share.out;
    for (int64_t m = 0; m < count; ++m) {
      int64_t n = live[m], emitted = (offset + n) * s.projected + share.out;
      S* own = dh + (d * s.rows + n) * P_ + share.out;
      if (g.dy) add_row(own, g.dy + (walk.row(t, n) * s.directions + d) * s.projected + share.out, outs);
      if (g.h_prev && p.h_mask)
        multiply_row<S>(g.h_prev + emitted, walk.h_before(t, n) + share.out, mask(d, n) + share.out, outs);
      else if (g.h_prev)
        copy(g.h_prev + emitted, walk.h_before(t, n) + share.out, outs);
      if (projects) {
        int64_t place = (walk.row(t, n) * s.directions + d) * s.projected + share.out;
        for (int64_t j = 0; j < outs; j += V::kLanes) {
          V past = V(0), total = V::load(own + j);
          if (p.zone_h) lead_past(p.zone_h, place + j, outs - j, &total, &past);
          total.store(g.dh_steps + emitted + j, outs - j);
          past.store(own + j);
        }
        rows[m] = g.dh_steps + (offset + n) * s.projected;
      }
    }
    if (projects) through_w_hr(share, count, live, rows, a, wide, tile);
    for (int64_t m = 0; m < count; ++m) differentiate(share, walk, t, live[m]);
    share.meet_if_units_are_split();
    for (int64_t m = 0; m < count; ++m) rows[m] = g.dgates + (offset + live[m]) * Q * s.hidden;
    through_w_hh(share, t % 2, count, live, rows, a, wide, tile);
    for (int64_t m = 0; m < count; ++m)
      if (walk.cut(t, live[m])) divert(share, d * s.rows + live[m]);
  }

  // dhidden = dh_steps @ W_hr
  void through_w_hr(const Share& share, int64_t count, const int64_t* live, const T* const* rows, const S** a, S* wide,
                    S* tile) {
    share.meet_if_units_are_split();
    widen_rows<T, S>(count, s.projected, rows, wide, a);
    for_panels<S>(share.unit, share.unit_end, false, [&](int64_t j, int64_t columns) {
      for_blocks(count, kBlockRows, [&](int64_t m, int64_t block_rows) {
        multiply<S>(block_rows, columns, a + m, s.projected, w_hr + (share.d * H_ + j) * s.projected, zero_bias, 0,
                    tile, kPanel<S>);
        for (int64_t b = 0; b < block_rows; ++b)
          copy(dhidden + (share.d * s.rows + live[m + b]) * H_ + j, tile + b * kPanel<S>, padded<S>(columns));
      });
    });
  }

  // The cell, for all units of the share and one row. dh and dc: gradients after the step in, before it out.
  void differentiate(const Share& share, const Walk<T>& walk, int64_t t, int64_t n) {
    int d = share.d;
    int64_t r = walk.row(t, n), own = d * s.rows + n;
    const T* saved = p.saved + (d * s.packed_rows + r) * A * s.hidden;
    const T* before = kHasCell ? walk.c_before(t, n) : walk.h_before(t, n);
    const T* dc_step = g.dc_steps ? g.dc_steps + (r * s.directions + d) * s.hidden : nullptr;
    T* dgates = g.dgates + (d * s.packed_rows + r) * Q * s.hidden;
    S* dh_row = projects ? dhidden + own * H_ : dh + own * P_;
    S* dc_row = dc + own * H_;
    int64_t place = r * s.directions + d;
    bool zone_h = p.zone_h && !projects;
    for (int64_t j = share.unit; j < share.unit_end; j += V::kLanes) {
      int64_t left = s.hidden - j;
      V keep[A], prev[2], ds[2], dgate[Q];
#pragma GCC unroll 4
      for (int i = 0; i < A; ++i) keep[i] = V::load(saved + i * s.hidden + j, left);
      prev[kHasCell] = V::load(before + j, left);
      ds[0] = V::load(dh_row + j);
      if constexpr (kHasCell) {
        ds[1] = V::load(dc_row + j);
        if (dc_step) ds[1] = ds[1] + V::load(dc_step + j, left);
      }
      V past[2] = {V(0), V(0)};
      if (zone_h) lead_past(p.zone_h, place * s.projected + j, left, ds, past);
      if (kHasCell && p.zone_c) lead_past(p.zone_c, place * s.hidden + j, left, ds + 1, past + 1);
      Cell::backward(keep, prev, ds, dgate);
      if (zone_h) ds[0] = ds[0] + past[0];
      if (kHasCell && p.zone_c) ds[1] = ds[1] + past[1];
      ds[0].store(dh_row + j);
      if constexpr (kHasCell) ds[1].store(dc_row + j);
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) dgate[q].store(dgates + q * s.hidden + j, left);
    }
  }

  // What zoneout leads past the cell to the state before, and what is left for the cell.
  static void lead_past(const Zone& zone, int64_t at, int64_t lanes, V* ds, V* past) {
    V share = share_kept<S>(zone, at, lanes);
    *past = blend(share, *ds, V(0));
    *ds = blend(share, V(0), *ds);
  }

  const T* mask(int d, int64_t n) const { return p.h_mask + (d * s.rows + n) * s.projected; }

  // dh += dr @ W_hh. dr is the first G-1 planes of dgates and its last one.
  void through_w_hh(const Share& share, bool backwards, int64_t count, const int64_t* live, const T** rows, const S** a,
                    S* wide, S* tile) {
    int64_t K = G * s.hidden, lead = Q == G ? K : (G - 1) * s.hidden;
    widen_rows<T, S>(count, Q * s.hidden, rows, wide, a);
    for_panels<S>(share.out, share.out_end, backwards, [&](int64_t j, int64_t columns) {
      for_blocks(count, kBlockRows, [&](int64_t m, int64_t block_rows) {
        const S* panel = w_hh + (share.d * P_ + j) * K;
        multiply<S>(block_rows, columns, a + m, lead, panel, zero_bias, 0, tile, kPanel<S>);
        if constexpr (Q > G) {
          const S* last[kBlockRows];
          for (int64_t b = 0; b < block_rows; ++b) last[b] = a[m + b] + (Q - 1) * s.hidden;
          multiply<S>(block_rows, columns, last, s.hidden, panel + lead * padded<S>(columns), tile, kPanel<S>, tile,
                      kPanel<S>);
        }
        for (int64_t b = 0; b < block_rows; ++b) {
          S* own = tile + b * kPanel<S>;
          if (p.h_mask) multiply_row<S>(own, own, mask(share.d, live[m + b]) + j, columns);
          add_row(dh + (share.d * s.rows + live[m + b]) * P_ + j, own, columns);
        }
      });
    });
  }

  // The state before the step was the reset state: its gradient ends here.
  void divert(const Share& share, int64_t own) {
    int64_t h = own * P_ + share.out, c = own * H_ + share.unit;
    int64_t outs = padded<S>(share.out_end - share.out), units = padded<S>(share.unit_end - share.unit);
    if (g.dreset_h) add_row<S, S>(dreset_h + h, dh + h, outs);
    zero(dh + h, outs);
    if (!kHasCell) return;
    if (g.dreset_c) add_row<S, S>(dreset_c + c, dc + c, units);
    zero(dc + c, units);
  }

  const ScanParams<T>& p;
  const ScanGrads<T>& g;
  const Shape& s;
  bool projects;
  int64_t H_, P_;                // H and P, padded to whole vectors
  Buffer<S> w_hh;                // [D] packed matrix [P_, G*H]
  Buffer<S> w_hr;                // [D] packed matrix [H_, P]
  Buffer<S> dh, dc;              // [D, N, P_] and [D, N, H_]  gradient of the state, on its way to the step before
  Buffer<S> dhidden;             // [D, N, H_]  of the hidden state before projection
  Buffer<S> dreset_h, dreset_c;  // as dh and dc, summed over all cuts
  Buffer<T> zeros;
  Buffer<S> zero_bias;
};

template <class T>
void scan_backward(CellKind kind, const ScanParams<T>& params, const ScanGrads<T>& grads) {
  visit(kind, [&](auto cell) { Backward<decltype(cell), T>(params, grads).run(); });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
