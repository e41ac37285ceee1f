// Forward driver. The input projection is made for a chunk of steps at a time, so that W_ih is read seldom and neither
// the projection nor the gates leave the cache.
#pragma once

#include "steps.h"
#include "twin.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class Cell, class T>
class Forward {
  using S = Arithmetic<T>;
  using V = Vec<S>;
  static constexpr int G = Cell::kGates, A = Cell::kSaved;
  static constexpr int64_t kChunkRows = 96;             // rows the input projection is made for at a time, at least
  static constexpr int64_t kBlockRows = 4 * kTileRows;  // rows whose gates are kept in L1 at a time
  static constexpr bool kIsBfloat16 = std::is_same_v<T, bfloat16> && std::endian::native == std::endian::little;
  static constexpr bool kHasCell = Cell::kStates == 2;

 public:
  explicit Forward(const ScanParams<T>& params)
      : p(params),
        s(params.shape),
        packs(s.packed_rows >= kRowsWorthPacking),
        pairs_of_x(packs && kIsBfloat16 && kDotProducts && s.input % 2 == 0),
        pairs(packs && kIsBfloat16 && s.projected % 2 == 0 && (kDotProducts || few_rows())),
        projects(params.weights[0].w_hr),
        H_(padded<S>(s.hidden)),
        P_(padded<S>(s.projected)),
        w_ih(packs ? s.directions * G * s.input * H_ >> pairs_of_x : 0),
        w_hh(packs ? s.directions * G * s.projected * H_ >> pairs : 0),
        w_hr(projects ? s.directions * s.hidden * P_ : 0),
        b_ih(s.directions * G * H_),
        b_hh(s.directions * G * H_),
        c(kHasCell ? s.directions * s.rows * H_ : 0),
        hidden(projects && !p.hidden ? s.directions * s.rows * s.hidden : 0),
        zeros(s.hidden + s.projected),
        zero_bias(kPanel<S>) {
    zero<T>(zeros, s.hidden + s.projected);
    zero<S>(zero_bias, kPanel<S>);
  }

  void run() {
    double flops = 2.0 * s.packed_rows * s.directions * G * s.hidden * (s.input + s.projected);
    Division division = divide<Cell>(p, flops);
    share_out(p, division, [&](const Share& share) {
      pack_weights(share);
      if (!share.splits_units()) share.meet();
      if (share.row < share.row_end) walk(share, 0);
    });
  }

 private:
  struct Row {  // one row in one step
    int64_t n, index;
    S* gates_x;  // [G, width]
  };

  // For one row, W_hh as bfloat16 has half the bytes to come from L2, and for more, if it does not fit there, from L3:
  // worth more than to widen it in every step (LSTM, T=100, H=512, one thread: 2.1 times as fast for N=1, 1.6 for
  // 3, 1.1 for 6; H=128: 1.1 for N=1, but 0.93 for 3).
  bool few_rows() const { return s.rows == 1 || (s.rows <= kTileRows && is_large<Cell, S>(s)); }

  // A second chunk would have fewer rows than are worth one.
  bool is_one_chunk() const { return s.packed_rows < 2 * kChunkRows; }
  // Where W_ih is used once, each panel is packed just before its use, all in one place, so that none goes to memory
  // (LSTM, T=100, N=1, H=512: forward takes 0.96 of its time). Not where rows are split, and every thread needs all.
  bool packs_w_ih_late(const Share& share) const {
    return packs && is_one_chunk() && (share.splits_units() || share.members == 1);
  }

  // Each thread packs a part.
  void pack_weights(const Share& share) {
    const Weights<T>& w = p.weights[share.d];
    for_packed<S>(share, s.hidden, [&](int64_t begin, int64_t end) {
      for_panels<S>(begin, end, false, [&](int64_t j, int64_t columns) { pack_gates(share, j, columns); });
    });
    for_packed<S>(share, projects ? s.projected : 0, [&](int64_t begin, int64_t end) {
      pack_transposed(w.w_hr + begin * s.hidden, end - begin, s.hidden, s.hidden,
                      w_hr + (share.d * P_ + begin) * s.hidden);
    });
  }

  void pack_gates(const Share& share, int64_t j, int64_t columns) {
    const Weights<T>& w = p.weights[share.d];
    for (int g = 0; g < G; ++g) {
      int64_t unit = g * s.hidden + j;
      if (packs) {
        if (!packs_w_ih_late(share))
          pack_gate(w.w_ih + unit * s.input, columns, s.input, pairs_of_x,
                    w_ih + at(share.d, j, g, columns, s.input, pairs_of_x));
        pack_gate(w.w_hh + unit * s.projected, columns, s.projected, pairs,
                  w_hh + at(share.d, j, g, columns, s.projected, pairs));
      }
      pack_bias(w.b_ih, unit, columns, b_ih + (share.d * G + g) * H_ + j);
      pack_bias(w.b_hh, unit, columns, b_hh + (share.d * G + g) * H_ + j);
    }
  }

  void pack_gate(const T* w, int64_t columns, int64_t k, bool in_pairs, S* packed) {
    (in_pairs ? pack_transposed_pairs<T, S> : pack_transposed<T, S>)(w, columns, k, k, packed);
  }

  void pack_bias(const T* bias, int64_t unit, int64_t columns, S* packed) {
    if (bias)
      widen_row(packed, bias + unit, columns);
    else
      zero(packed, padded<S>(columns));
  }

  // Where the packed panel of gate g of units j .. j + columns begins. The gates of a unit lie together.
  int64_t at(int d, int64_t j, int g, int64_t columns, int64_t k, bool in_pairs = false) const {
    return ((d * H_ + j) * G + g * padded<S>(columns)) * k >> in_pairs;
  }

  // c = b + a W^T for gate g of units j .. j + columns.
  void multiply_by(const T* w, const S* packed, bool in_pairs, const S* bias, int d, int64_t j, int g, int64_t columns,
                   int64_t rows, int64_t k, const S* const* a, S* c, int64_t c_stride) {
    bias += (d * G + g) * H_ + j;
    if (packs)
      multiply(rows, columns, a, k, packed + at(d, j, g, columns, k, in_pairs), bias, 0, c, c_stride, in_pairs);
    else
      multiply_unpacked(rows, columns, a, k, w + (g * s.hidden + j) * k, bias, c, c_stride);
  }

  // From the walk's step `begin` on.
  void walk(Share share, int64_t begin) {
    int d = share.d;
    Walk<T> walk{p, d, zeros};
    int64_t count = share.row_end - share.row, width = padded<S>(share.unit_end - share.unit);
    int64_t chunk_rows = is_one_chunk() ? s.packed_rows : kChunkRows, room = least(chunk_rows + count, s.packed_rows);
    int64_t longest = s.input > s.projected ? s.input : s.projected;
    longest = longest > s.hidden ? longest : s.hidden;
    Buffer<Row> rows(room);
    Buffer<const T*> h(room);
    Buffer<const S*> a(room);
    Buffer<S> wide(kWidens<T, S> ? room * padded<S>(longest) : 0);
    Buffer<S> gates_x(room * G * width), gates_r(kBlockRows * G * kPanel<S>);
    Buffer<S> panel(packs_w_ih_late(share) ? kPanel<S> * s.input : 0);
    Buffer<S> masked(p.h_mask ? count * padded<S>(s.projected) : 0);
    for (int64_t n = share.row; kHasCell && begin == 0 && n < share.row_end; ++n)
      widen_row(c + (d * s.rows + n) * H_ + share.unit, p.c0 + (d * s.rows + n) * s.hidden + share.unit,
                share.unit_end - share.unit);

    for (int64_t i = begin, next; i < s.steps; i = next) {
      int64_t chunk = 0;
      for (next = i; next < s.steps && chunk < chunk_rows; ++next)
        chunk += live_rows(share, walk, walk.step(next), rows + chunk);
      for (int64_t m = 0; m < chunk; ++m) {
        h[m] = p.x + rows[m].index * s.input;
        rows[m].gates_x = gates_x + m * G * width;
      }
      as_operands<T, S>(chunk, s.input, h, pairs_of_x, wide, a);
      project_input(share, chunk, a, panel, gates_x);
      Row* first = rows;
      for (; i < next; ++i) {
        int64_t t = walk.step(i), live = 0;
        while (first + live < rows + chunk && first[live].index < p.batch.offsets[t + 1] &&
               first[live].index >= p.batch.offsets[t])
          ++live;
        if (i > begin && share.meet_or_take_over(s)) return this->walk(share, i);  // x meets all units
        take_step(share, walk, t, live, first, h, a, wide, masked, gates_r);
        first += live;
      }
    }
    finish(share, walk);
  }

  // Lists the rows that take step t; the outputs of those frozen in it are zero.
  int64_t live_rows(const Share& share, const Walk<T>& walk, int64_t t, Row* rows) {
    int64_t live = 0, step_rows = walk.rows(t), D = s.directions, units = share.unit_end - share.unit;
    for (int64_t n = share.row; n < share.row_end && n < step_rows; ++n) {
      int64_t r = walk.row(t, n);
      if (walk.alive(t, n)) {
        rows[live++] = {n, r, nullptr};
        continue;
      }
      zero(p.y + (r * D + walk.d) * s.projected + share.out, share.out_end - share.out);
      if (p.c_steps) zero(p.c_steps + (r * D + walk.d) * s.hidden + share.unit, units);
      for (int i = 0; p.saved && i < A; ++i)
        zero(p.saved + ((walk.d * s.packed_rows + r) * A + i) * s.hidden + share.unit, units);
      if (p.hidden) zero(p.hidden + (walk.d * s.packed_rows + r) * s.hidden + share.unit, units);
    }
    return live;
  }

  void project_input(const Share& share, int64_t rows, const S* const* x, S* panel, S* gates_x) {
    int64_t width = padded<S>(share.unit_end - share.unit);
    const T* w = p.weights[share.d].w_ih;
    for_panels<S>(share, share.unit, share.unit_end, s.hidden, false, [&](int64_t j, int64_t columns) {
      for (int g = 0; g < G; ++g) {
        S* to = gates_x + g * width + j - share.unit;
        if (packs_w_ih_late(share)) {
          pack_gate(w + (g * s.hidden + j) * s.input, columns, s.input, pairs_of_x, panel);
          multiply<S>(rows, columns, x, s.input, panel, b_ih + (share.d * G + g) * H_ + j, 0, to, G * width,
                      pairs_of_x);
        } else {
          multiply_by(w, w_ih, pairs_of_x, b_ih, share.d, j, g, columns, rows, s.input, x, to, G * width);
        }
      }
    });
  }

  void take_step(const Share& share, const Walk<T>& walk, int64_t t, int64_t live, const Row* rows, const T** h,
                 const S** a, S* wide, S* masked, S* gates_r) {
    int d = share.d;
    int64_t units = share.unit_end - share.unit;
    for (int64_t m = 0; m < live; ++m) {
      int64_t n = rows[m].n, own = d * s.rows + n;
      h[m] = walk.h_before(t, n);
      if (kHasCell && walk.cut(t, n)) {
        if (p.reset_c)
          widen_row(c + own * H_ + share.unit, p.reset_c + own * s.hidden + share.unit, units);
        else
          zero(c + own * H_ + share.unit, padded<S>(units));
      }
    }
    as_operands<T, S>(live, s.projected, h, pairs, wide, a);
    for (int64_t m = 0; p.h_mask && m < live; ++m) {
      S* row = masked + m * padded<S>(s.projected);
      const T* mask = p.h_mask + (d * s.rows + rows[m].n) * s.projected;
      if (kDotProducts && pairs)
        multiply_row<S>(reinterpret_cast<T*>(row), h[m], mask, s.projected);
      else
        multiply_row<S>(row, a[m], mask, s.projected);
      a[m] = row;
    }
    for_panels<S>(share, share.unit, share.unit_end, s.hidden, t % 2, [&](int64_t j, int64_t columns) {
      for_blocks(live, kBlockRows, [&](int64_t m, int64_t block_rows) {
        for (int64_t b = 0; b < block_rows; ++b) {
          int64_t place = rows[m + b].index * s.directions + d;
          expect_stores(output(d, rows[m + b]) + j, columns);
          if (p.c_steps) expect_stores(p.c_steps + place * s.hidden + j, columns);
        }
        for (int i = 0; i < G; ++i) {
          for (int64_t b = 0; p.saved && b < block_rows; ++b)  // not all at once: they would fill L1
            expect_stores(saved_row(d, rows[m + b]) + i * s.hidden + j, columns);
          int g = t % 2 ? G - 1 - i : i;  // as the panels (T=1000, N=1, H=64: LSTM takes 0.92 of its time, GRU 0.89)
          multiply_by(p.weights[d].w_hh, w_hh, pairs, b_hh, d, j, g, columns, block_rows, s.projected, a + m,
                      gates_r + g * kPanel<S>, G * kPanel<S>);
        }
        for (int64_t b = 0; b < block_rows; ++b) {
          const Row& row = rows[m + b];
          activate(share, row, j, columns, h[m + b], gates_r + b * G * kPanel<S>, c + (d * s.rows + row.n) * H_,
                   output(d, row));
        }
      });
    });
    if (projects) project_hidden(share, walk, t, live, rows, h, a, wide, gates_r);
  }

  // The cell, for units j0 .. j0 + columns of one row.
  void activate(const Share& share, const Row& row, int64_t j0, int64_t columns, const T* h, const S* gates_r, S* c,
                T* out) {
    int d = share.d;
    int64_t width = padded<S>(share.unit_end - share.unit);
    T* saved = p.saved ? saved_row(d, row) : nullptr;
    int64_t place = row.index * s.directions + d;
    T* c_step = p.c_steps ? p.c_steps + place * s.hidden : nullptr;
    bool zone_h = p.zone_h && !projects;
    auto units = [&]<class U>(U, int64_t v) {
      int64_t j = j0 + v, n = s.hidden - j;
      U x[G], r[G], state[2], keep[A];
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
        x[g] = U::load(row.gates_x + g * width + j - share.unit);
        r[g] = U::load(gates_r + g * kPanel<S> + v);
      }
      if constexpr (kHasCell)
        state[1] = U::load(c + j);
      else
        state[0] = U::load(h + j, n);
      U c_before = kHasCell ? state[1] : U(0);
      Cell::forward(x, r, state, keep);
      if (zone_h) state[0] = blend(share_kept<S, U>(p.zone_h, place * s.projected + j, n), U::load(h + j, n), state[0]);
      if (kHasCell && p.zone_c)
        state[1] = blend(share_kept<S, U>(p.zone_c, place * s.hidden + j, n), c_before, state[1]);
      state[0].store(out + j, n);
      if constexpr (kHasCell) {
        state[1].store(c + j);
        if (c_step) state[1].store(c_step + j, n);
      }
      if (saved)
#pragma GCC unroll 4
        for (int i = 0; i < A; ++i) keep[i].store(saved + i * s.hidden + j, n);
    };
    int64_t v = 0;
    for (; v + V::kLanes < columns; v += 2 * V::kLanes) units(Twin<S>(), v);
    if (v < columns) units(V(), v);
  }

  // Where the cell's h goes: y, or what is projected to y.
  T* output(int d, const Row& row) {
    return projects ? hidden_row(d, row) : p.y + (row.index * s.directions + d) * s.projected;
  }
  T* saved_row(int d, const Row& row) { return p.saved + (d * s.packed_rows + row.index) * A * s.hidden; }
  T* hidden_row(int d, const Row& row) {
    return p.hidden ? p.hidden + (d * s.packed_rows + row.index) * s.hidden : hidden + (d * s.rows + row.n) * s.hidden;
  }

  void project_hidden(const Share& share, const Walk<T>& walk, int64_t t, int64_t live, const Row* rows, const T** h,
                      const S** a, S* wide, S* tile) {
    int d = share.d;
    share.meet_if_units_are_split();
    for (int64_t m = 0; m < live; ++m) h[m] = hidden_row(d, rows[m]);
    as_operands<T, S>(live, s.hidden, h, false, wide, a);
    for_panels<S>(share, share.out, share.out_end, s.projected, false, [&](int64_t j, int64_t columns) {
      for_blocks(live, kBlockRows, [&](int64_t m, int64_t block_rows) {
        multiply<S>(block_rows, columns, a + m, s.hidden, w_hr + (d * P_ + j) * s.hidden, zero_bias, 0, tile,
                    kPanel<S>);
        for (int64_t b = 0; b < block_rows; ++b) {
          int64_t at = (rows[m + b].index * s.directions + d) * s.projected + j;
          S* fresh = tile + b * kPanel<S>;
          const T* old = p.zone_h ? walk.h_before(t, rows[m + b].n) + j : nullptr;
          for (int64_t v = 0; old && v < columns; v += V::kLanes)
            blend(share_kept<S>(p.zone_h, at + v, columns - v), V::load(old + v, columns - v), V::load(fresh + v))
                .store(fresh + v);
          narrow_row(p.y + at, fresh, columns);
        }
      });
    });
  }

  void finish(const Share& share, const Walk<T>& walk) {
    for (int64_t n = share.row; n < share.row_end; ++n) {
      int64_t own = share.d * s.rows + n, length = walk.length(n), last = share.d ? 0 : length - 1;
      const T* h = length ? p.y + (walk.row(last, n) * s.directions + share.d) * s.projected : p.h0 + own * s.projected;
      if (p.h_n != p.y) copy(p.h_n + own * s.projected + share.out, h + share.out, share.out_end - share.out);
      if (kHasCell)
        narrow_row(p.c_n + own * s.hidden + share.unit, c + own * H_ + share.unit, share.unit_end - share.unit);
    }
  }

  const ScanParams<T>& p;
  const Shape& s;
  bool packs, pairs_of_x, pairs, projects;
  int64_t H_, P_;        // H and P, padded to whole vectors
  Buffer<S> w_ih, w_hh;  // [D] packed matrices [G*H_, I] and [G*H_, P], perhaps in pairs
  Buffer<S> w_hr;        // [D] packed matrix [P_, H]
  Buffer<S> b_ih, b_hh;  // [D, G, H_]
  Buffer<S> c;           // [D, N, H_]  the cell state on its way
  Buffer<T> hidden;      // [D, N, H]   the hidden state before projection, unless it is an output
  Buffer<T> zeros;
  Buffer<S> zero_bias;
};

template <class T>
void scan_forward(CellKind kind, const ScanParams<T>& params) {
  visit(kind, [&](auto cell) { Forward<decltype(cell), T>(params).run(); });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
