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
  static constexpr int B = Cell::kRecurrent, A = Cell::kSaved, Q = Cell::kGrads, kPlanes = planes_of<Cell>;
  static constexpr int64_t kBlockRows = 8 * kTileRows;
  static constexpr int64_t kChunkRows = 1024;  // rows whose gate gradients are summed up together, about
  static constexpr int64_t kPieceRows = 48;    // that a layer completes at once for the one below, at least
  static constexpr int kStates = Cell::kStates;

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
        dstates(offset(kStates)),
        dhidden(projects ? s.directions * s.rows * H_ : 0),
        dgates(s.directions * room * kPlanes * s.hidden),
        dh_steps(projects ? s.directions * room * s.projected : 0),
        dresets(wants_resets() ? offset(kStates) : 0),
        vectors(s.directions * Cell::kVectors * H_),
        zeros(s.hidden + s.projected),
        zero_bias(kPanel<S>) {
    zero<T>(zeros, s.hidden + s.projected);
    zero<S>(zero_bias, kPanel<S>);
    for (int d = 0; d < s.directions; ++d) {
      w_hh[d].emplace(p.weights[d].w_hh, B * s.hidden, s.projected, pairs, s.packed_rows, s.rows);
      w_hr[d].emplace(p.weights[d].w_hr, s.projected, s.hidden, pairs, s.packed_rows, s.rows);
      sums[d].emplace(p, g, d, room);
      for (int u = 0; u < Cell::kVectors; ++u)
        widen_row(vectors + (d * Cell::kVectors + u) * H_, p.weights[d].vectors + u * s.hidden, s.hidden);
    }
  }

  void run() {
    double flops = 2.0 * s.packed_rows * s.directions * B * s.hidden * s.projected;
    size_t last = chunks.size() - 2;
    Division division = p.progress ? Division{1, 1, 1} : divide<Cell>(p, flops);
    for (size_t i = 0; i <= last; ++i) {
      if (p.progress) sums[0]->prepare(0, 1, chunk(0, i), i == 0);
      run_partitioned(p, division, [&](Partition& part) {
        if (i == 0) {
          pack_weights(part);
          if (!part.splits_units()) part.sync();
          start(part);
        }
        if (p.progress)
          walk_in_pieces(part, chunk(part.d, i));
        else if (part.row < part.row_end)
          walk(part, chunk(part.d, i), chunk(part.d, i));
        if (i == last) finish(part);
      });
      sum_up(i);
    }
  }

 private:
  // How many rows take the steps before step t. Rows that have ended have no gate gradients, and no products either.
  std::vector<int64_t> rows_taken() const {
    std::vector<int64_t> taken{0};
    StepIterator<T> walk{{p, 0}, nullptr};
    for (int64_t t = 0; t < s.steps; ++t) taken.push_back(taken.back() + alive_rows(walk, t, walk.rows(t)));
    return taken;
  }
  // Those of rows 0 .. end - 1 that take step t.
  int64_t alive_rows(const StepIterator<T>& walk, int64_t t, int64_t end) const {
    if (!p.batch.lengths) return least(end, walk.rows(t));
    int64_t count = 0;
    for (int64_t n = 0; n < end; ++n) count += walk.alive(t, n);
    return count;
  }
  // Chunks of steps with about as many rows each: chunk k is steps [k] .. [k+1] - 1. There is one where there is no
  // step.
  std::vector<int64_t> bounds_of_chunks() const {
    int64_t rows = taken.back(), count = (rows + kChunkRows - 1) / kChunkRows, chunk = 0;
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
    double flops = 2.0 * s.packed_rows * s.directions * s.hidden * (2.0 * Cell::kGates * s.input + B * s.projected);
    size_t last = chunks.size() - 2;
    Barrier barrier;
    team(flops < kFlopsWorthAThread ? 1 : max_threads(), [&](int64_t member, int64_t members) {
      barrier.run([&] {
        for (int d = 0; d < s.directions && !p.progress; ++d) sums[d]->prepare(member, members, chunk(d, i), i == 0);
        barrier.sync(members);
        for (int d = 0; d < s.directions; ++d) {
          bool begun = s.directions == 2 && (2 * i > last || (2 * i == last && d == 1));
          Steps steps = chunk(d, i);
          const E* grads = dgates + d * room * kPlanes * s.hidden;
          int64_t row = boundary(steps.rows, member, members, 1), end = boundary(steps.rows, member + 1, members, 1);
          if (!p.progress) sums[d]->add_dx(row, end, grads, begun);  // else walk_in_pieces() has made it
          sums[d]->add(member, members, steps, grads, dh_steps + d * (projects ? room * s.projected : 0),
                       {i == 0, i == last, begun});
        }
      });
    });
  }

  // Each thread packs a part.
  void pack_weights(const Partition& part) {
    auto pack = [&](const Matrix<T>& w, int64_t columns) {
      for_packed<S>(part, columns, w.panel(), [&](int64_t begin, int64_t end) { w.pack(begin, end); });
    };
    pack(*w_hh[part.d], s.projected);
    if (projects) pack(*w_hr[part.d], s.hidden);
  }

  // The columns of state k that a thread owns.
  struct Columns {
    int64_t begin, count;
  };
  Columns columns_of(const Partition& part, int k) const {
    return k ? Columns{part.unit, part.unit_end - part.unit} : Columns{part.out, part.out_end - part.out};
  }
  // Rows of state k in dstates and dresets.
  int64_t offset(int k) const { return k ? s.directions * s.rows * (P_ + (k - 1) * H_) : 0; }
  int64_t place(int k, int d, int64_t n) const { return offset(k) + (d * s.rows + n) * (k ? H_ : P_); }
  bool wants_resets() const {
    bool any = false;
    for (int k = 0; k < kStates; ++k) any |= g.states[k].reset != nullptr;
    return any;
  }

  void start(const Partition& part) {
    for (int64_t n = part.row; n < part.row_end; ++n)
      for (int k = 0; k < kStates; ++k) {
        auto [begin, count] = columns_of(part, k);
        int64_t to = place(k, part.d, n) + begin;
        if (const T* last = g.states[k].last)
          widen_row(dstates + to, last + (part.d * s.rows + n) * s.width(k) + begin, count);
        else
          zero(dstates + to, padded<S>(count));
        if (g.states[k].reset) zero(dresets + to, padded<S>(count));
      }
  }

  // The rows of a thread that take a step, and what it needs for their products.
  struct LiveRows {
    LiveRows(int64_t most, int64_t widest)
        : n(most), stored(most), a(most), wide(most * padded<S>(widest)), tile(kBlockRows * kPanel<S>) {}

    int64_t count = 0;
    Buffer<int64_t> n;        // batch rows
    Buffer<const E*> stored;  // operands as stored
    Buffer<const S*> a;       // as products take them
    Buffer<S> wide, tile;     // in the type of arithmetic; [kBlockRows, kPanel]
  };

  // Steps of a chunk.
  void walk(Partition& part, const Steps& chunk, const Steps& steps) {
    StepIterator<T> walk{{p, part.d}, zeros};
    int64_t widest = s.projected > Q * s.hidden ? s.projected : Q * s.hidden;
    LiveRows live(part.row_end - part.row, kDotProducts && !pairs ? widest : 0);
    for (int64_t i = 0; i < steps.end - steps.begin; ++i) {
      int64_t t = part.d ? steps.begin + i : steps.end - 1 - i;
      int64_t before = taken[t] - taken[chunk.begin] + alive_rows(walk, t, part.row);
      live.count = 0;
      for (int64_t n = part.row; n < part.row_end && n < walk.rows(t); ++n)
        if (walk.alive(t, n)) live.n[live.count++] = n;
      take_step(part, walk, t, part.d * room + before, live);
    }
  }

  // A chunk beside the layer below, which goes on when it has dx of a piece.
  void walk_in_pieces(Partition& part, const Steps& chunk) {
    for (int64_t begin, end = chunk.end; end > chunk.begin; end = begin) {
      for (begin = end - 1; begin > chunk.begin && taken[end] - taken[begin] < kPieceRows;) --begin;
      if (p.ahead) p.ahead->wait_for(s.steps - begin);
      walk(part, chunk, {begin, end, taken[end] - taken[begin]});
      int64_t before = taken[chunk.begin];
      sums[0]->add_dx(taken[begin] - before, taken[end] - before, dgates, false);
      p.progress->complete(s.steps - begin);
    }
  }

  void finish(const Partition& part) {
    for (int64_t n = part.row; n < part.row_end; ++n)
      for (int k = 0; k < kStates; ++k) {
        auto [begin, count] = columns_of(part, k);
        int64_t from = place(k, part.d, n) + begin, to = (part.d * s.rows + n) * s.width(k) + begin;
        narrow_row(g.states[k].initial + to, dstates + from, count);
        if (T* reset = g.states[k].reset) narrow_row(reset + to, dresets + from, count);
      }
  }

  // first: the place of the partition's first row in dgates and dh_steps.
  void take_step(Partition& part, const StepIterator<T>& walk, int64_t t, int64_t first, LiveRows& live) {
    int64_t outs = part.out_end - part.out;
    for (int64_t m = 0; m < live.count; ++m) {
      int64_t n = live.n[m], emitted = (first + m) * s.projected + part.out;
      int64_t output = walk.output(walk.row(t, n), s.projected, part.out);
      S* dh = dstates + place(0, part.d, n) + part.out;
      if (g.states[0].steps) add_row(dh, g.states[0].steps + output, outs);
      if (projects) {
        const Zone& zone = p.states[0].zone;
        for (int64_t j = 0; j < outs; j += V::kLanes) {
          V total = V::load(dh + j), past = V(0);
          if (zone) past = zoneout_bypass(fraction_kept<S>(zone, output + j, outs - j), &total);
          total.store(dh_steps + emitted + j, outs - j);
          past.store(dh + j);
        }
        live.stored[m] = dh_steps + (first + m) * s.projected;
      }
    }
    if (projects) {
      part.sync_if_units_are_split();
      as_operands<E, S>(live.count, s.projected, live.stored, pairs, live.wide, live.a);
      through_w_hr(part, live);
    }
    for (int64_t m = 0; m < live.count; ++m) {
      E* row = dgates + (first + m) * kPlanes * s.hidden;
      differentiate(part, walk, t, live.n[m], row);
      live.stored[m] = row;
    }
    part.sync_or_take_over(s);
    if (B) as_operands<E, S>(live.count, Q * s.hidden, live.stored, pairs, live.wide, live.a);
    if (B) through_w_hh(part, t % 2, live);
    for (int64_t m = 0; m < live.count; ++m)
      if (walk.reset_before(t, live.n[m])) divert(part, live.n[m]);
  }

  // dhidden = dh_steps @ W_hr
  void through_w_hr(const Partition& part, const LiveRows& live) {
    const Matrix<T>& w = *w_hr[part.d];
    for_panels<S>(part, {w.panel(), part.unit, part.unit_end, s.hidden}, false, [&](int64_t j, int64_t columns) {
      for_blocks(live.count, kBlockRows, [&](int64_t m, int64_t block_rows) {
        w.multiply(block_rows, live.a + m, {j, columns, 0, s.projected}, {zero_bias, 0, live.tile, kPanel<S>});
        for (int64_t b = 0; b < block_rows; ++b)
          copy(dhidden + (part.d * s.rows + live.n[m + b]) * H_ + j, live.tile + b * kPanel<S>, padded<S>(columns));
      });
    });
  }

  // The cell, for all units of the partition and one row: dstates from after the step to before it.
  void differentiate(const Partition& part, const StepIterator<T>& walk, int64_t t, int64_t n, E* dgates) {
    constexpr int kFirst = Cell::kReadsH ? 0 : 1;
    int d = part.d;
    int64_t r = walk.row(t, n), place = r * s.directions + d;
    const T* saved = p.saved + walk.record(r, A, 0, 0);
    const T *before[kStates], *dsteps[kStates];
    S* dstate[kStates];
    for (int k = 0; k < kStates; ++k) {
      before[k] = k >= kFirst ? walk.before(k, t, n) : nullptr;
      dsteps[k] = k ? gradient_of_steps(k, place * s.hidden) : nullptr;
      dstate[k] = dstates + this->place(k, d, n);
    }
    if (projects) dstate[0] = dhidden + (d * s.rows + n) * H_;
    for (int64_t j = part.unit; j < part.unit_end; j += V::kLanes) {
      int64_t left = s.hidden - j;
      V keep[A], prev[kStates + Cell::kVectors + Cell::kInputs], ds[kStates], past[kStates], dgate[kPlanes];
#pragma GCC unroll 4
      for (int i = 0; i < A; ++i) keep[i] = V::load(saved + i * s.hidden + j, left);
#pragma GCC unroll 4
      for (int k = 0; k < kStates; ++k) {
        prev[k] = k >= kFirst ? V::load(before[k] + j, left) : V(0);
        ds[k] = V::load(dstate[k] + j);
        if (dsteps[k]) ds[k] = ds[k] + V::load(dsteps[k] + j, left);
        past[k] = V(0);
        if (zones(k)) past[k] = zoneout_bypass(fraction_kept<S>(p.states[k].zone, place * s.hidden + j, left), &ds[k]);
      }
      load_operands<Cell, T, S>(p, r, j, {vectors + d * Cell::kVectors * H_, H_}, prev + kStates);
      Cell::backward(keep, prev, ds, dgate);
#pragma GCC unroll 4
      for (int k = 0; k < kStates; ++k) {
        if (zones(k)) ds[k] = ds[k] + past[k];
        ds[k].store(dstate[k] + j);
      }
#pragma GCC unroll 4
      for (int q = 0; q < kPlanes; ++q) dgate[q].store(dgates + q * s.hidden + j, left);
    }
  }

  const T* gradient_of_steps(int k, int64_t at) const { return g.states[k].steps ? g.states[k].steps + at : nullptr; }

  // Does zoneout of state k take place at the cell? That of a projected h takes place behind the projection.
  bool zones(int k) const { return p.states[k].zone && (k > 0 || !projects); }

  const T* mask(int d, int64_t n) const { return p.h_mask + (d * s.rows + n) * s.projected; }

  // dh += dr @ W_hh, for planes of dr that follow each other at once.
  void through_w_hh(const Partition& part, bool backwards, const LiveRows& live) {
    constexpr const int* kPlane = Cell::kRecurrentGrads;
    const Matrix<T>& w = *w_hh[part.d];
    for_panels<S>(part, {w.panel(), part.out, part.out_end, s.projected}, backwards, [&](int64_t j, int64_t columns) {
      for_blocks(live.count, kBlockRows, [&](int64_t m, int64_t block_rows) {
        S* tile = live.tile;
        for (int k = 0, end; k < B; k = end) {
          for (end = k + 1; end < B && kPlane[end] == kPlane[end - 1] + 1;) ++end;
          const S* from[kBlockRows];
          for (int64_t b = 0; b < block_rows; ++b) from[b] = live.a[m + b] + (kPlane[k] * s.hidden >> pairs);
          w.multiply(block_rows, from, {j, columns, k * s.hidden, (end - k) * s.hidden},
                     {k ? tile : zero_bias, k ? kPanel<S> : 0, tile, kPanel<S>});
        }
        for (int64_t b = 0; b < block_rows; ++b) {
          S* own = tile + b * kPanel<S>;
          if (p.h_mask) multiply_row<S>(own, own, mask(part.d, live.n[m + b]) + j, columns);
          add_row(dstates + place(0, part.d, live.n[m + b]) + j, own, columns);
        }
      });
    });
  }

  // The states before the step were the reset states: their gradients end here.
  void divert(const Partition& part, int64_t n) {
    for (int k = 0; k < kStates; ++k) {
      auto [begin, count] = columns_of(part, k);
      int64_t at = place(k, part.d, n) + begin;
      if (g.states[k].reset) add_row<S, S>(dresets + at, dstates + at, padded<S>(count));
      zero(dstates + at, padded<S>(count));
    }
  }

  const ScanParams<T>& p;
  const ScanGrads<T>& g;
  const Shape& s;
  bool projects, pairs;
  std::vector<int64_t> taken, chunks;
  int64_t room;  // rows of a chunk at most
  std::optional<Matrix<T>> w_hh[2], w_hr[2];
  std::optional<Sums<Cell, T>> sums[2];
  int64_t H_, P_;      // H and P, padded to whole vectors
  Buffer<S> dstates;   // [D, N, P_] of h, then [D, N, H_] of each other state: between two steps
  Buffer<S> dhidden;   // [D, N, H_]  of the hidden state before projection
  Buffer<E> dgates;    // [D, room, kPlanes, H]  of one chunk
  Buffer<E> dh_steps;  // [D, room, P]     total gradient of each step's output, of one chunk
  Buffer<S> dresets;   // the same, summed over all resets
  Buffer<S> vectors;   // [D, U, H_]
  Buffer<T> zeros;
  Buffer<S> zero_bias;
};

template <class Cell, class T>
void scan_backward(const ScanParams<T>& params, const ScanGrads<T>& grads) {
  Backward<Cell, T>(params, grads).run();
}

}  // namespace fusedrnn::FUSEDRNN_ISA
