// Backward driver: the same rows, walked the other way. After some steps their gate gradients go into what is summed
// over steps (sums.h).
#pragma once

#include <optional>
#include <vector>

#include "matrix.h"
#include "steps.h"
#include "sums.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class Cell, class T>
class Backward {
  using S = Arithmetic<T>;
  using V = Vec<S>;
  using E = Operand<T>;
  static constexpr int G = Cell::kGates, A = Cell::kSaved, Q = Cell::kGrads;
  static constexpr int64_t kBlockRows = 8 * kTileRows;
  // Rows summed up together, about: fewer where the cache of a core keeps the gate gradients of these, and not of those
  // (LSTM, T=100, N=16 .. 64, H=128: a training call takes 0.98 of its time with 512; H=512: 1.01).
  static constexpr int64_t kChunkRows = 1024, kFewChunkRows = 512;
  static constexpr int64_t kAhead = 2;  // rows
  static constexpr bool kHasCell = Cell::kStates == 2;

 public:
  Backward(const ScanParams<T>& params, const ScanGrads<T>& grads)
      : p(params),
        g(grads),
        s(params.shape),
        projects(params.weights[0].w_hr),
        pairs(kDotProducts && s.hidden % 2 == 0 && s.projected % 2 == 0),
        taken(rows_taken()),
        chunks(bounds_of_chunks()),
        room(most_rows()),
        H_(padded<S>(s.hidden)),
        P_(padded<S>(s.projected)),
        dh(s.directions * s.rows * P_),
        dc(kHasCell ? s.directions * s.rows * H_ : 0),
        dhidden(projects ? s.directions * s.rows * H_ : 0),
        dgates(s.directions * room * Q * s.hidden),
        dh_steps(projects ? s.directions * room * s.projected : 0),
        dreset_h(g.dreset_h ? s.directions * s.rows * P_ : 0),
        dreset_c(g.dreset_c ? s.directions * s.rows * H_ : 0),
        zeros(s.hidden + s.projected),
        zero_bias(kPanel<S>) {
    zero<T>(zeros, s.hidden + s.projected);
    zero<S>(zero_bias, kPanel<S>);
    for (int d = 0; d < s.directions; ++d) {
      w_hh[d].emplace(p.weights[d].w_hh, G * s.hidden, s.projected, pairs, s.packed_rows);
      w_hr[d].emplace(p.weights[d].w_hr, s.projected, s.hidden, pairs, s.packed_rows);
      sums[d].emplace(p, g, d, room);
    }
  }

  void run() {
    double flops = 2.0 * s.packed_rows * s.directions * G * s.hidden * s.projected;
    size_t last = chunks.size() - 2;
    Division division = divide<Cell>(p, flops);
    for (size_t i = 0; i <= last; ++i) {
      share_out(p, division, [&](Share& share) {
        if (i == 0) {
          pack_weights(share);
          if (!share.splits_units()) share.meet();
          start(share);
        }
        if (share.row < share.row_end) walk(share, chunk(share.d, i));
        if (i == last) finish(share);
      });
      sum_up(i);
    }
  }

 private:
  // How many rows take the steps before step t, all rows counted that take it: frozen ones are left out of what is
  // emitted (LSTM, T=200, N=64, H=128, lengths of 10 to 200: a training call takes 0.73 to 0.77 of its time with zeros
  // for them).
  std::vector<int64_t> rows_taken() const {
    std::vector<int64_t> taken{0};
    Walk<T> walk{p, 0, nullptr};
    for (int64_t t = 0; t < s.steps; ++t) taken.push_back(taken.back() + alive_rows(walk, t, walk.rows(t)));
    return taken;
  }
  // Those of rows 0 .. end - 1 that take step t.
  int64_t alive_rows(const Walk<T>& walk, int64_t t, int64_t end) const {
    if (!p.batch.lengths) return least(end, walk.rows(t));
    int64_t count = 0;
    for (int64_t n = 0; n < end; ++n) count += walk.alive(t, n);
    return count;
  }
  // Chunks of steps with about as many rows each: chunk k is steps [k] .. [k+1] - 1. There is one where there is no
  // step.
  std::vector<int64_t> bounds_of_chunks() const {
    int64_t bytes = Q * s.hidden * static_cast<int64_t>(sizeof(E));
    bool few = kFewChunkRows * bytes <= kCacheOfACore && kChunkRows * bytes > kCacheOfACore;
    int64_t most = few ? kFewChunkRows : kChunkRows;
    int64_t rows = taken.back(), count = (rows + most - 1) / most, chunk = 0;
    std::vector<int64_t> bounds{0};
    for (int64_t t = 1; count > 1 && t < s.steps; ++t)
      if (int64_t own = taken[t] * count / rows; own != chunk) bounds.push_back(t), chunk = own;
    bounds.push_back(s.steps);
    return bounds;
  }
  int64_t most_rows() const {
    int64_t most = 0;
    for (size_t k = 0; k + 1 < chunks.size(); ++k) {
      int64_t rows = taken[chunks[k + 1]] - taken[chunks[k]];
      most = rows > most ? rows : most;
    }
    return most;
  }
  // Number i on a direction's walk.
  Steps chunk(int d, size_t i) const {
    size_t k = d ? i : chunks.size() - 2 - i;
    return {chunks[k], chunks[k + 1], taken[chunks[k + 1]] - taken[chunks[k]]};
  }

  void sum_up(size_t i) {
    constexpr double kFlopsWorthAThread = 1e6;
    double flops = 2.0 * s.packed_rows * s.directions * G * s.hidden * (2.0 * s.input + s.projected);
    size_t last = chunks.size() - 2;
    Barrier barrier;
    team(flops < kFlopsWorthAThread ? 1 : max_threads(), [&](int64_t member, int64_t members) {
      barrier.run([&] {
        for (int d = 0; d < s.directions; ++d) sums[d]->prepare(member, members, chunk(d, i), i == 0);
        barrier.meet(members);
        for (int d = 0; d < s.directions; ++d) {
          bool begun = s.directions == 2 && (2 * i > last || (2 * i == last && d == 1));
          sums[d]->add(member, members, chunk(d, i), dgates + d * room * Q * s.hidden,
                       dh_steps + d * (projects ? room * s.projected : 0), i == 0, i == last, begun);
        }
      });
    });
  }

  // Each thread packs a part.
  void pack_weights(const Share& share) {
    auto pack = [&](const Matrix<T>& w, int64_t columns) {
      for_packed<S>(share, columns, [&](int64_t begin, int64_t end) { w.pack(begin, end); });
    };
    pack(*w_hh[share.d], s.projected);
    if (projects) pack(*w_hr[share.d], s.hidden);
  }

  void start(const Share& share) {
    int64_t outs = share.out_end - share.out, units = share.unit_end - share.unit;
    for (int64_t n = share.row; n < share.row_end; ++n) {
      int64_t own = share.d * s.rows + n, h = own * s.projected + share.out, c = own * s.hidden + share.unit;
      start(dh + own * P_ + share.out, g.dh_n ? g.dh_n + h : nullptr, outs);
      if (kHasCell) start(dc + own * H_ + share.unit, g.dc_n ? g.dc_n + c : nullptr, units);
      if (g.dreset_h) start(dreset_h + own * P_ + share.out, nullptr, outs);
      if (g.dreset_c) start(dreset_c + own * H_ + share.unit, nullptr, units);
    }
  }

  void walk(Share& share, const Steps& steps) {
    Walk<T> walk{p, share.d, zeros};
    int64_t most = share.row_end - share.row;
    int64_t widest = s.projected > Q * s.hidden ? s.projected : Q * s.hidden;
    Buffer<S> tile(kBlockRows * kPanel<S>), wide(kDotProducts && !pairs ? most * padded<S>(widest) : 0);
    Buffer<int64_t> live(most);
    Buffer<const E*> rows(most);
    Buffer<const S*> a(most);
    for (int64_t i = 0; i < steps.end - steps.begin; ++i) {
      int64_t t = share.d ? steps.begin + i : steps.end - 1 - i;
      int64_t count = 0, before = taken[t] - taken[steps.begin] + alive_rows(walk, t, share.row);
      for (int64_t n = share.row; n < share.row_end && n < walk.rows(t); ++n)
        if (walk.alive(t, n)) live[count++] = n;
      take_step(share, walk, t, share.d * room + before, count, live, rows, a, wide, tile);
    }
  }

  void finish(const Share& share) {
    int64_t outs = share.out_end - share.out, units = share.unit_end - share.unit;
    for (int64_t n = share.row; n < share.row_end; ++n) {
      int64_t own = share.d * s.rows + n, h = own * s.projected + share.out, c = own * s.hidden + share.unit;
      narrow_row(g.dh0 + h, dh + own * P_ + share.out, outs);
      if (kHasCell) narrow_row(g.dc0 + c, dc + own * H_ + share.unit, units);
      if (g.dreset_h) narrow_row(g.dreset_h + h, dreset_h + own * P_ + share.out, outs);
      if (g.dreset_c) narrow_row(g.dreset_c + c, dreset_c + own * H_ + share.unit, units);
    }
  }

  static void start(S* to, const T* given, int64_t count) {
    if (given)
      widen_row(to, given, count);
    else
      zero(to, padded<S>(count));
  }

  // place: of the share's first row in what is emitted.
  void take_step(Share& share, const Walk<T>& walk, int64_t t, int64_t place, int64_t count, const int64_t* live,
                 const E** rows, const S** a, S* wide, S* tile) {
    int d = share.d;
    int64_t outs = share.out_end - share.out;
    for (int64_t m = 0; m < count; ++m) {
      int64_t n = live[m], emitted = (place + m) * s.projected + share.out;
      S* own = dh + (d * s.rows + n) * P_ + share.out;
      if (g.dy) add_row(own, g.dy + (walk.row(t, n) * s.directions + d) * s.projected + share.out, outs);
      if (projects) {
        int64_t kept = (walk.row(t, n) * s.directions + d) * s.projected + share.out;
        for (int64_t j = 0; j < outs; j += V::kLanes) {
          V past = V(0), total = V::load(own + j);
          if (p.zone_h) lead_past(p.zone_h, kept + j, outs - j, &total, &past);
          total.store(dh_steps + emitted + j, outs - j);
          past.store(own + j);
        }
        rows[m] = dh_steps + (place + m) * s.projected;
      }
    }
    if (projects) {
      share.meet_if_units_are_split();
      as_operands<E, S>(count, s.projected, rows, pairs, wide, a);
      through_w_hr(share, count, live, a, tile);
    }
    for (int64_t m = 0; m < count; ++m) {
      E* row = dgates + (place + m) * Q * s.hidden;
      differentiate(share, walk, t, live[m], row);
      rows[m] = row;
    }
    share.meet_or_take_over(s);
    as_operands<E, S>(count, Q * s.hidden, rows, pairs, wide, a);
    through_w_hh(share, t % 2, count, live, a, tile);
    for (int64_t m = 0; m < count; ++m)
      if (walk.cut(t, live[m])) divert(share, d * s.rows + live[m]);
  }

  // dhidden = dh_steps @ W_hr
  void through_w_hr(const Share& share, int64_t count, const int64_t* live, const S* const* a, S* tile) {
    for_panels<S>(share, share.unit, share.unit_end, s.hidden, false, [&](int64_t j, int64_t columns) {
      for_blocks(count, kBlockRows, [&](int64_t m, int64_t block_rows) {
        w_hr[share.d]->multiply(block_rows, j, columns, 0, s.projected, a + m, zero_bias, 0, tile, kPanel<S>);
        for (int64_t b = 0; b < block_rows; ++b)
          copy(dhidden + (share.d * s.rows + live[m + b]) * H_ + j, tile + b * kPanel<S>, padded<S>(columns));
      });
    });
  }

  // The cell, for all units of the share and one row. dh and dc: gradients after the step in, before it out. What the
  // forward pass kept of the step's row after the next comes to the cache meanwhile (LSTM, GRU, T=100, N=16 .. 64,
  // H=128: a backward pass takes 0.98 of its time; H=512: 1.00).
  void differentiate(const Share& share, const Walk<T>& walk, int64_t t, int64_t n, E* dgates) {
    int d = share.d;
    int64_t r = walk.row(t, n), own = d * s.rows + n;
    const T* saved = p.saved + (d * s.packed_rows + r) * A * s.hidden;
    const T* before = kHasCell ? walk.c_before(t, n) : walk.h_before(t, n);
    const T* dc_step = g.dc_steps ? g.dc_steps + (r * s.directions + d) * s.hidden : nullptr;
    S* dh_row = projects ? dhidden + own * H_ : dh + own * P_;
    S* dc_row = dc + own * H_;
    int64_t place = r * s.directions + d;
    bool zone_h = p.zone_h && !projects, expects = n + kAhead < walk.rows(t);
    for (int64_t j = share.unit; j < share.unit_end; j += V::kLanes) {
      int64_t left = s.hidden - j;
      V keep[A], prev[2], ds[2], dgate[Q];
#pragma GCC unroll 4
      for (int i = 0; i < A; ++i) keep[i] = V::load(saved + i * s.hidden + j, left);
      if (expects) {
        for (int i = 0; i < A; ++i) __builtin_prefetch(saved + (kAhead * A + i) * s.hidden + j);
        __builtin_prefetch(before + kAhead * s.directions * s.hidden + j);
      }
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
  void through_w_hh(const Share& share, bool backwards, int64_t count, const int64_t* live, const S* const* a,
                    S* tile) {
    int64_t lead = (Q == G ? G : G - 1) * s.hidden;
    for_panels<S>(share, share.out, share.out_end, s.projected, backwards, [&](int64_t j, int64_t columns) {
      for_blocks(count, kBlockRows, [&](int64_t m, int64_t block_rows) {
        const Matrix<T>& w = *w_hh[share.d];
        w.multiply(block_rows, j, columns, 0, lead, a + m, zero_bias, 0, tile, kPanel<S>);
        if constexpr (Q > G) {
          const S* last[kBlockRows];
          for (int64_t b = 0; b < block_rows; ++b) last[b] = a[m + b] + ((Q - 1) * s.hidden >> pairs);
          w.multiply(block_rows, j, columns, lead, s.hidden, last, tile, kPanel<S>, tile, kPanel<S>);
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
  bool projects, pairs;
  std::vector<int64_t> taken, chunks;
  int64_t room;  // rows of a chunk at most
  std::optional<Matrix<T>> w_hh[2], w_hr[2];
  std::optional<Sums<Cell, T>> sums[2];
  int64_t H_, P_;                // H and P, padded to whole vectors
  Buffer<S> dh, dc;              // [D, N, P_] and [D, N, H_]  gradient of the state, on its way to the step before
  Buffer<S> dhidden;             // [D, N, H_]  of the hidden state before projection
  Buffer<E> dgates;              // [D, room, Q, H]  of one chunk
  Buffer<E> dh_steps;            // [D, room, P]     total gradient of each step's output, of one chunk
  Buffer<S> dreset_h, dreset_c;  // as dh and dc, summed over all cuts
  Buffer<T> zeros;
  Buffer<S> zero_bias;
};

template <class T>
void scan_backward(CellKind kind, const ScanParams<T>& params, const ScanGrads<T>& grads) {
  visit(kind, [&](auto cell) { Backward<decltype(cell), T>(params, grads).run(); });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
