// Forward driver: one thread carries its rows through all steps of one direction. The input projection is made for a
// chunk of steps at a time, so that neither it nor the gates ever leave the cache.
#pragma once

#include "steps.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class Cell, class T>
class Forward {
  using S = Arithmetic<T>;
  using V = Vec<S>;
  static constexpr int G = Cell::kGates, A = Cell::kSaved;
  static constexpr int64_t kChunkRows = 48;               // rows the input projection is made for at a time, at least
  static constexpr int64_t kBlockRows = 4 * kTileRows;    // rows whose gates are kept in L1 at a time
  static constexpr bool kHasCell = Cell::kStates == 2;

 public:
  explicit Forward(const ScanParams<T>& params)
      : p(params),
        s(params.shape),
        H_(padded<S>(s.hidden)),
        P_(padded<S>(s.projected)),
        w_ih(s.directions * G * s.input * H_),
        w_hh(s.directions * G * s.projected * H_),
        b_ih(s.directions * G * H_),
        b_hh(s.directions * G * H_),
        w_hr(p.weights[0].w_hr ? s.directions * s.hidden * P_ : 0),
        zeros(s.hidden + s.projected),
        zero_bias(kPanel<S>) {
    zero<T>(zeros, s.hidden + s.projected);
    zero<S>(zero_bias, kPanel<S>);
    parallel_for(s.directions * G, [&](int64_t i) {
      const Weights<T>& w = p.weights[i / G];
      int64_t g = i % G;
      pack(w.w_ih + g * s.hidden * s.input, s.hidden, s.input, s.input, 1, w_ih + i * s.input * H_);
      pack(w.w_hh + g * s.hidden * s.projected, s.hidden, s.projected, s.projected, 1, w_hh + i * s.projected * H_);
      pack_bias(w.b_ih, g, b_ih + i * H_);
      pack_bias(w.b_hh, g, b_hh + i * H_);
    });
    for (int d = 0; w_hr && p.weights[0].w_hr && d < s.directions; ++d)
      pack(p.weights[d].w_hr, s.projected, s.hidden, s.hidden, 1, w_hr + d * s.hidden * P_);
  }

  void run() {
    double flops = 2.0 * s.packed_rows * s.directions * G * s.hidden * (s.input + s.projected);
    for_row_ranges(p, flops, [&](int d, int64_t begin, int64_t end) { walk(d, begin, end); });
  }

 private:
  struct Row {  // one row in one step
    int64_t n, index;
    S* gates_x;  // [G, H_]
  };

  void pack_bias(const T* bias, int64_t g, S* packed) {
    zero<S>(packed, H_);
    if (bias) widen_row(packed, bias + g * s.hidden, s.hidden);
  }

  void walk(int d, int64_t begin, int64_t end) {
    Walk<T> walk{p, d, zeros};
    int64_t count = end - begin, room = kChunkRows + count;
    Buffer<Row> rows(room);
    Buffer<const T*> a(room);
    Buffer<T> hidden(count * s.hidden);
    Buffer<S> gates_x(room * G * H_), gates_r(kBlockRows * G * kPanel<S>), c(kHasCell ? count * H_ : 0);
    for (int64_t n = begin; kHasCell && n < end; ++n)
      widen_row(c + (n - begin) * H_, p.c0 + (d * s.rows + n) * s.hidden, s.hidden);

    for (int64_t i = 0, next; i < s.steps; i = next) {
      int64_t chunk = 0;
      for (next = i; next < s.steps && chunk < kChunkRows; ++next)
        chunk += live_rows(walk, walk.step(next), begin, end, rows + chunk);
      for (int64_t m = 0; m < chunk; ++m) {
        a[m] = p.x + rows[m].index * s.input;
        rows[m].gates_x = gates_x + m * G * H_;
      }
      project_input(d, chunk, a, gates_x);
      Row* first = rows;
      for (; i < next; ++i) {
        int64_t t = walk.step(i), live = 0;
        while (first + live < rows + chunk && first[live].index < p.batch.offsets[t + 1] &&
               first[live].index >= p.batch.offsets[t])
          ++live;
        take_step(walk, t, live, first, begin, a, hidden, gates_r, c);
        first += live;
      }
    }
    finish(walk, begin, end, c);
  }

  // Lists the rows that take step t; the outputs of those frozen in it are zero.
  int64_t live_rows(const Walk<T>& walk, int64_t t, int64_t begin, int64_t end, Row* rows) {
    int64_t live = 0, step_rows = walk.rows(t), D = s.directions;
    for (int64_t n = begin; n < end && n < step_rows; ++n) {
      int64_t r = walk.row(t, n);
      if (walk.alive(t, n)) {
        rows[live++] = {n, r, nullptr};
        continue;
      }
      zero(p.y + (r * D + walk.d) * s.projected, s.projected);
      if (p.c_steps) zero(p.c_steps + (r * D + walk.d) * s.hidden, s.hidden);
      if (p.saved) zero(p.saved + (walk.d * s.packed_rows + r) * A * s.hidden, A * s.hidden);
      if (p.hidden) zero(p.hidden + (walk.d * s.packed_rows + r) * s.hidden, s.hidden);
    }
    return live;
  }

  void project_input(int d, int64_t rows, const T* const* x, S* gates_x) {
    for (int g = 0; g < G; ++g)
      for (int64_t j = 0; j < s.hidden; j += kPanel<S>) {
        int64_t gate = d * G + g, columns = block(s.hidden - j);
        multiply(rows, columns, x, s.input, panel_at<S>(w_ih + gate * s.input * H_, s.input, j),
                 b_ih + gate * H_ + j, 0, gates_x + g * H_ + j, G * H_);
      }
  }

  void take_step(const Walk<T>& walk, int64_t t, int64_t live, const Row* rows, int64_t begin, const T** h, T* hidden,
                 S* gates_r, S* c) {
    int d = walk.d;
    for (int64_t m = 0; m < live; ++m) {
      int64_t n = rows[m].n;
      h[m] = walk.h_before(t, n);
      if (kHasCell && walk.cut(t, n)) {
        if (p.reset_c)
          widen_row(c + (n - begin) * H_, p.reset_c + (d * s.rows + n) * s.hidden, s.hidden);
        else
          zero(c + (n - begin) * H_, H_);
      }
    }
    bool projected = p.weights[d].w_hr;
    for (int64_t j = 0; j < s.hidden; j += kPanel<S>)
      for (int64_t m = 0; m < live; m += kBlockRows) {
        int64_t block_rows = live - m < kBlockRows ? live - m : kBlockRows, columns = block(s.hidden - j);
        for (int g = 0; g < G; ++g) {
          int64_t gate = d * G + g;
          multiply(block_rows, columns, h + m, s.projected,
                   panel_at<S>(w_hh + gate * s.projected * H_, s.projected, j), b_hh + gate * H_ + j, 0,
                   gates_r + g * kPanel<S>, G * kPanel<S>);
        }
        for (int64_t b = 0; b < block_rows; ++b) {
          const Row& row = rows[m + b];
          T* out = !projected ? p.y + (row.index * s.directions + d) * s.projected
                              : hidden_row(d, row.index, hidden, m + b);
          activate(d, row, j, columns, h[m + b], gates_r + b * G * kPanel<S>, c + (row.n - begin) * H_, out);
        }
      }
    if (projected) project_hidden(d, live, rows, hidden, h, gates_r);
  }

  // The cell, for units j .. j + columns of one row.
  void activate(int d, const Row& row, int64_t j0, int64_t columns, const T* h, const S* gates_r, S* c, T* out) {
    T* saved = p.saved ? p.saved + (d * s.packed_rows + row.index) * A * s.hidden : nullptr;
    T* c_step = p.c_steps ? p.c_steps + (row.index * s.directions + d) * s.hidden : nullptr;
    for (int64_t v = 0; v < columns; v += V::kLanes) {
      int64_t j = j0 + v, n = s.hidden - j;
      V x[G], r[G], state[2], keep[A];
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
        x[g] = V::load(row.gates_x + g * H_ + j);
        r[g] = V::load(gates_r + g * kPanel<S> + v);
      }
      if constexpr (kHasCell)
        state[1] = V::load(c + j);
      else
        state[0] = V::load(h + j, n);
      Cell::forward(x, r, state, keep);
      state[0].store(out + j, n);
      if constexpr (kHasCell) {
        state[1].store(c + j);
        if (c_step) state[1].store(c_step + j, n);
      }
      if (saved)
#pragma GCC unroll 4
        for (int a = 0; a < A; ++a) keep[a].store(saved + a * s.hidden + j, n);
    }
  }

  T* hidden_row(int d, int64_t index, T* scratch, int64_t m) {
    return p.hidden ? p.hidden + (d * s.packed_rows + index) * s.hidden : scratch + m * s.hidden;
  }

  void project_hidden(int d, int64_t live, const Row* rows, T* hidden, const T** a, S* tile) {
    for (int64_t m = 0; m < live; ++m) a[m] = hidden_row(d, rows[m].index, hidden, m);
    for (int64_t j = 0; j < s.projected; j += kPanel<S>)
      for (int64_t m = 0; m < live; m += kBlockRows) {
        int64_t block_rows = live - m < kBlockRows ? live - m : kBlockRows, columns = block(s.projected - j);
        multiply<T, S>(block_rows, columns, a + m, s.hidden, panel_at<S>(w_hr + d * s.hidden * P_, s.hidden, j),
                       zero_bias, 0, tile, kPanel<S>);
        for (int64_t b = 0; b < block_rows; ++b)
          narrow_row(p.y + (rows[m + b].index * s.directions + d) * s.projected + j, tile + b * kPanel<S>, columns);
      }
  }

  void finish(const Walk<T>& walk, int64_t begin, int64_t end, const S* c) {
    for (int64_t n = begin; n < end; ++n) {
      int64_t own = walk.d * s.rows + n, length = walk.length(n), last = walk.d ? 0 : length - 1;
      const T* h = length ? p.y + (walk.row(last, n) * s.directions + walk.d) * s.projected : p.h0 + own * s.projected;
      copy(p.h_n + own * s.projected, h, s.projected);
      if constexpr (kHasCell) narrow_row(p.c_n + own * s.hidden, c + (n - begin) * H_, s.hidden);
    }
  }

  static int64_t block(int64_t columns) { return columns < kPanel<S> ? columns : kPanel<S>; }

  const ScanParams<T>& p;
  const Shape& s;
  int64_t H_, P_;                        // H and P, padded to whole vectors
  Buffer<S> w_ih, w_hh, b_ih, b_hh;      // [D, G] packed matrices and padded rows
  Buffer<S> w_hr;                        // [D] packed matrices
  Buffer<T> zeros;
  Buffer<S> zero_bias;
};

template <class T>
void scan_forward(CellKind kind, const ScanParams<T>& params) {
  visit(kind, [&](auto cell) { Forward<decltype(cell), T>(params).run(); });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
