// Forward driver. The input projection is made for a chunk of steps at a time, so that W_ih is read seldom and neither
// the projection nor the gates leave the cache.
#pragma once

#include "gates.h"
#include "vec2.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class Cell, class T, class Weights = Gates<Cell, T>>
class Forward {
  using S = Arithmetic<T>;
  using V = Vec<S>;
  static constexpr int G = Cell::kGates, B = Cell::kRecurrent, A = Cell::kSaved, kStates = Cell::kStates;
  static constexpr int U = Cell::kVectors, E = Cell::kInputs;
  static constexpr int64_t kChunkRows = 96;             // rows the input projection is made for at a time, at least
  static constexpr int64_t kBlockRows = 4 * kTileRows;  // rows whose gates are kept in L1 at a time

 public:
  explicit Forward(const ScanParams<T>& params)
      : p(params),
        s(params.shape),
        gates(params, is_one_chunk()),
        projects(params.weights[0].w_hr),
        panel(panel_for<S>(s.rows)),
        H_(padded<S>(s.hidden)),
        P_(padded<S>(s.projected)),
        w_hr(projects ? s.directions * s.hidden * P_ : 0),
        carried((kStates - 1) * s.directions * s.rows * H_),
        hidden(projects && !p.hidden ? s.directions * s.rows * s.hidden : 0),
        zeros(s.hidden + s.projected),
        zero_bias(kPanel<S>) {
    zero<T>(zeros, s.hidden + s.projected);
    zero<S>(zero_bias, kPanel<S>);
  }

  void run() {
    double flops = 2.0 * s.packed_rows * s.directions * s.hidden * (G * s.input + B * s.projected);
    Division division = divide<Cell>(p, flops);
    run_partitioned(p, division, [&](const Partition& part) {
      pack_weights(part);
      if (!part.splits_units()) part.sync();
      if (part.row < part.row_end) walk(part, 0);
    });
  }

 private:
  struct Row {  // one row in one step
    int64_t n, index;
    S* gates_x;  // [G, width]
  };

  bool is_one_chunk() const { return s.packed_rows < 2 * kChunkRows; }
  // Each thread packs a part.
  void pack_weights(const Partition& part) {
    gates.pack(part);
    for_packed<S>(part, projects ? s.projected : 0, panel, [&](int64_t begin, int64_t end) {
      pack_transposed(p.weights[part.d].w_hr + begin * s.hidden, end - begin, s.hidden, s.hidden, panel,
                      w_hr + (part.d * P_ + begin) * s.hidden);
    });
  }

  // What a thread needs besides for its rows, `room` of them at a time.
  struct Workspace {
    Workspace(const Forward& f, const Partition& part, int64_t room)
        : rows(room),
          h(room),
          a(room),
          operands(room * f.gates.operand_room()),
          gates_x(room * G * padded<S>(part.unit_end - part.unit)),
          gates_r(kBlockRows * B * kPanel<S>),
          panel(f.gates.packs_input_late(part) ? kPanel<S> * f.s.input : 0),
          masked(f.p.h_mask ? (part.row_end - part.row) * padded<S>(f.s.projected) : 0) {}

    Buffer<Row> rows;
    Buffer<const T*> h;  // rows as stored
    Buffer<const S*> a;  // rows as products take them
    Buffer<S> operands;  // rows that products cannot take as they are stored
    Buffer<S> gates_x;   // [room, G, width]
    Buffer<S> gates_r;   // [kBlockRows, B, panel]
    Buffer<S> panel;     // of W_ih, if it is packed just before its use
    Buffer<S> masked;    // h times h_mask
  };

  // From the walk's step `begin` on.
  void walk(Partition part, int64_t begin) {
    StepIterator<T> walk{{p, part.d}, zeros};
    int64_t chunk_rows = is_one_chunk() ? s.packed_rows : kChunkRows;
    Workspace space(*this, part, least(chunk_rows + part.row_end - part.row, s.packed_rows));
    if (begin == 0) start(part, walk);
    for (int64_t i = begin, next; i < s.steps; i = next) {
      int64_t chunk = 0;
      for (next = i; next < s.steps && chunk < chunk_rows; ++next)
        chunk += live_rows(part, walk, walk.step(next), space.rows + chunk);
      if (p.ahead) p.ahead->wait_for(next);
      project_input(part, chunk, space);
      Row* first = space.rows;
      for (; i < next; ++i) {
        int64_t t = walk.step(i), live = rows_of(walk.at(t), first, space.rows + chunk);
        if (i > begin && part.sync_or_take_over(s)) return this->walk(part, i);  // x meets all units
        take_step(part, walk, t, first, live, space);
        first += live;
      }
      if (p.progress) p.progress->complete(next);
    }
    finish(part, walk);
  }

  void start(const Partition& part, const StepIterator<T>& walk) {
    for (int64_t n = part.row; n < part.row_end; ++n)
      for (int k = 1; k < kStates; ++k)
        widen_row(carried_row(k, part.d, n) + part.unit, p.states[k].initial + walk.state(n, s.hidden, part.unit),
                  part.unit_end - part.unit);
  }

  // How many of the rows from `row` on take this step.
  static int64_t rows_of(const Step& step, const Row* row, const Row* end) {
    int64_t live = 0;
    while (row + live < end && row[live].index >= step.first && row[live].index < step.first + step.rows) ++live;
    return live;
  }

  // Lists the rows that take step t; the outputs of those frozen in it are zero.
  int64_t live_rows(const Partition& part, const StepIterator<T>& walk, int64_t t, Row* rows) {
    int64_t live = 0, step_rows = walk.rows(t), units = part.unit_end - part.unit;
    for (int64_t n = part.row; n < part.row_end && n < step_rows; ++n) {
      int64_t r = walk.row(t, n);
      if (walk.alive(t, n)) {
        rows[live++] = {n, r, nullptr};
        continue;
      }
      zero(p.states[0].steps + walk.output(r, s.projected, part.out), part.out_end - part.out);
      for (int k = 1; k < kStates; ++k)
        if (p.states[k].steps) zero(p.states[k].steps + walk.output(r, s.hidden, part.unit), units);
      for (int i = 0; p.saved && i < A; ++i) zero(p.saved + walk.record(r, A, i, part.unit), units);
      if (p.hidden) zero(p.hidden + walk.record(r, 1, 0, part.unit), units);
    }
    return live;
  }

  void project_input(const Partition& part, int64_t rows, const Workspace& space) {
    int64_t units = part.unit_end - part.unit, width = padded<S>(units);
    for (int64_t m = 0; m < rows; ++m) {
      int64_t place = (space.rows[m].index * s.directions + part.d) * G * s.hidden + part.unit;
      space.h[m] = p.x + space.rows[m].index * s.input;
      space.rows[m].gates_x = space.gates_x + m * G * width;
      for (int g = 0; p.gates_x && g < G; ++g)
        widen_row(space.rows[m].gates_x + g * width, p.gates_x + place + g * s.hidden, units);
    }
    if (p.gates_x) return;
    gates.take_operands(gates.of_input(part.d), rows, space.h, space.operands, space.a);
    Panels panels{panel_for<S>(s.packed_rows), part.unit, part.unit_end, s.hidden};
    for_panels<S>(part, panels, false, [&](int64_t j, int64_t columns) {
      for (int g = 0; g < G; ++g)
        gates.input_part(part, {j, g, columns}, rows, space.a, space.panel,
                         {space.gates_x + g * width + j - part.unit, G * width});
    });
  }

  void take_step(const Partition& part, const StepIterator<T>& walk, int64_t t, const Row* rows, int64_t live,
                 const Workspace& space) {
    for (int64_t m = 0; m < live; ++m) {
      int64_t n = rows[m].n;
      space.h[m] = walk.before(0, t, n);
      if (kStates > 1 && walk.reset_before(t, n)) reset(part, walk, n);
    }
    typename Weights::Product product = gates.recurrent(part.d);
    if (B) gates.take_operands(product, live, space.h, space.operands, space.a);
    if (B && p.h_mask) mask_rows(walk, rows, live, space);
    for_panels<S>(part, {panel, part.unit, part.unit_end, s.hidden}, t % 2, [&](int64_t j, int64_t columns) {
      for_blocks(live, kBlockRows, [&](int64_t m, int64_t block_rows) {
        prefetch_states(walk, rows + m, block_rows, j, columns);
        for (int i = 0; i < B; ++i) {
          for (int64_t b = 0; p.saved && i < A && b < block_rows; ++b)  // not all at once: they would fill L1
            prefetch_for_write(saved_row(part.d, rows[m + b]) + i * s.hidden + j, columns);
          int g = t % 2 ? B - 1 - i : i;  // as the panels
          gates.multiply_by(product, {j, g, columns}, block_rows, space.a + m, {space.gates_r + g * panel, B * panel});
        }
        for (int64_t b = 0; b < block_rows; ++b)
          activate(part, rows[m + b], j, columns, space.h[m + b], space.gates_r + b * B * panel);
      });
    });
    if (projects) project_hidden(part, walk, t, rows, live, space);
  }

  void mask_rows(const StepIterator<T>& walk, const Row* rows, int64_t live, const Workspace& space) {
    for (int64_t m = 0; m < live; ++m) {
      S* row = space.masked + m * padded<S>(s.projected);
      const T* mask = p.h_mask + walk.state(rows[m].n, s.projected, 0);
      if (kDotProducts && gates.recurrent(walk.d).pairs)
        multiply_row<S>(reinterpret_cast<T*>(row), space.h[m], mask, s.projected);
      else
        multiply_row<S>(row, space.a[m], mask, s.projected);
      space.a[m] = row;
    }
  }

  void prefetch_states(const StepIterator<T>& walk, const Row* rows, int64_t count, int64_t j, int64_t columns) {
    for (int64_t b = 0; b < count; ++b) {
      prefetch_for_write(output(walk.d, rows[b]) + j, columns);
      for (int k = 1; k < kStates; ++k)
        if (p.states[k].steps) prefetch_for_write(p.states[k].steps + walk.output(rows[b].index, s.hidden, j), columns);
    }
  }

  void reset(const Partition& part, const StepIterator<T>& walk, int64_t n) {
    for (int k = 1; k < kStates; ++k) {
      S* to = carried_row(k, part.d, n) + part.unit;
      if (const T* from = p.states[k].reset)
        widen_row(to, from + walk.state(n, s.hidden, part.unit), part.unit_end - part.unit);
      else
        zero(to, padded<S>(part.unit_end - part.unit));
    }
  }

  // The cell, for units j0 .. j0 + columns of one row.
  void activate(const Partition& part, const Row& row, int64_t j0, int64_t columns, const T* h, const S* gates_r) {
    int64_t width = padded<S>(part.unit_end - part.unit), place = row.index * s.directions + part.d;
    T* saved = p.saved ? saved_row(part.d, row) : nullptr;
    T* steps[kStates] = {output(part.d, row)};
    S* carry[kStates] = {};
    for (int k = 1; k < kStates; ++k) {
      carry[k] = carried_row(k, part.d, row.n);
      steps[k] = p.states[k].steps ? p.states[k].steps + place * s.hidden : nullptr;
    }
    bool zone_h = p.states[0].zone && !projects;
    auto units = [&]<class W>(W, int64_t v) {
      int64_t j = j0 + v, n = s.hidden - j;
      W x[G + U + E], r[B ? B : 1], state[kStates], before[kStates], keep[A];
      load_planes<G>(row.gates_x + j - part.unit, width, x);
      load_planes<B>(gates_r + v, panel, r);
      load_operands<Cell, T, S>(p, row.index, j, gates.vectors_of(part.d), x + G);
      state[0] = Cell::kReadsH ? W::load(h + j, n) : W(0);
#pragma GCC unroll 4
      for (int k = 1; k < kStates; ++k) state[k] = before[k] = W::load(carry[k] + j);
      Cell::forward(x, r, state, keep);
      if (zone_h)
        state[0] = blend(fraction_kept<S, W>(p.states[0].zone, place * s.hidden + j, n), W::load(h + j, n), state[0]);
      state[0].store(steps[0] + j, n);
#pragma GCC unroll 4
      for (int k = 1; k < kStates; ++k) {
        state[k] = zoned<S>(p.states[k].zone, place * s.hidden + j, n, before[k], state[k]);
        state[k].store(carry[k] + j);
        if (steps[k]) state[k].store(steps[k] + j, n);
      }
      if (saved) store_planes<A>(keep, saved + j, s.hidden, n);
    };
    int64_t v = 0;
    for (; v + V::kLanes < columns; v += 2 * V::kLanes) units(Vec2<S>(), v);
    if (v < columns) units(V(), v);
  }

  // The row of state k, one of all but h, between two steps.
  S* carried_row(int k, int d, int64_t n) { return carried + (((k - 1) * s.directions + d) * s.rows + n) * H_; }
  // Where the cell's h goes: y, or what is projected to y.
  T* output(int d, const Row& row) {
    return projects ? hidden_row(d, row) : p.states[0].steps + (row.index * s.directions + d) * s.projected;
  }
  T* saved_row(int d, const Row& row) { return p.saved + (d * s.packed_rows + row.index) * A * s.hidden; }
  T* hidden_row(int d, const Row& row) {
    return p.hidden ? p.hidden + (d * s.packed_rows + row.index) * s.hidden : hidden + (d * s.rows + row.n) * s.hidden;
  }

  void project_hidden(const Partition& part, const StepIterator<T>& walk, int64_t t, const Row* rows, int64_t live,
                      const Workspace& space) {
    S* tile = space.gates_r;
    part.sync_if_units_are_split();
    for (int64_t m = 0; m < live; ++m) space.h[m] = hidden_row(part.d, rows[m]);
    as_operands<T, S>(live, s.hidden, space.h, false, space.operands, space.a);
    for_panels<S>(part, {panel, part.out, part.out_end, s.projected}, false, [&](int64_t j, int64_t columns) {
      for_blocks(live, kBlockRows, [&](int64_t m, int64_t block_rows) {
        multiply<S>(block_rows, {space.a + m}, {w_hr + (part.d * P_ + j) * s.hidden, columns, s.hidden},
                    {zero_bias, 0, tile, panel});
        for (int64_t b = 0; b < block_rows; ++b) {
          int64_t at = walk.output(rows[m + b].index, s.projected, j);
          S* fresh = tile + b * panel;
          const Zone& zone = p.states[0].zone;
          const T* old = zone ? walk.before(0, t, rows[m + b].n) + j : nullptr;
          for (int64_t v = 0; old && v < columns; v += V::kLanes)
            blend(fraction_kept<S>(zone, at + v, columns - v), V::load(old + v, columns - v), V::load(fresh + v))
                .store(fresh + v);
          narrow_row(p.states[0].steps + at, fresh, columns);
        }
      });
    });
  }

  void finish(const Partition& part, const StepIterator<T>& walk) {
    for (int64_t n = part.row; n < part.row_end; ++n) {
      int64_t length = walk.length(n), last = part.d ? 0 : length - 1, place = walk.state(n, s.projected, part.out);
      const State<T>& h = p.states[0];
      const T* from = length ? h.steps + walk.output(walk.row(last, n), s.projected, part.out) : h.initial + place;
      if (h.last != h.steps) copy(h.last + place, from, part.out_end - part.out);
      for (int k = 1; k < kStates; ++k)
        narrow_row(p.states[k].last + walk.state(n, s.hidden, part.unit), carried_row(k, part.d, n) + part.unit,
                   part.unit_end - part.unit);
    }
  }

  const ScanParams<T>& p;
  const Shape& s;
  Weights gates;
  bool projects;
  int64_t panel;      // columns of the panels that a step's rows meet
  int64_t H_, P_;     // H and P, padded to whole vectors
  Buffer<S> w_hr;     // [D] packed matrix [P_, H]
  Buffer<S> carried;  // [S-1, D, N, H_]  the states but h, between two steps
  Buffer<T> hidden;   // [D, N, H]   the hidden state before projection, unless it is an output
  Buffer<T> zeros;
  Buffer<S> zero_bias;
};

template <class Cell, class T>
void scan_forward(const ScanParams<T>& params) {
  Forward<Cell, T>(params).run();
}

}  // namespace fusedrnn::FUSEDRNN_ISA
