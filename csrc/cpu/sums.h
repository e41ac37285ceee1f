// What a backward pass sums over steps: the gradients of x and of the weights, some steps at a time, while the gate
// gradients of these are in the cache. The gate gradients of all steps never exist at once.
#pragma once

#include "matrix.h"
#include "steps.h"

namespace fusedrnn::FUSEDRNN_ISA {

// Planes of a row that Cell::backward makes: gradients of gates, vectors and per-step inputs.
template <class Cell>
constexpr int planes_of = Cell::kGrads + Cell::kVectors + Cell::kInputs;

// One weight's gradient [units, width] while it is summed up: in its place, or beside it where that has another type or
// rows that are no whole vectors.
template <class T>
class GradAccumulator {
  using S = Arithmetic<T>;

 public:
  GradAccumulator(T* result, int64_t units, int64_t width)
      : result_(result),
        width_(width),
        stride_(padded<S>(width)),
        beside_(result && (kWidens<T, S> || stride_ != width)),
        room_(beside_ ? units * stride_ : 0) {}

  bool wanted() const { return result_; }
  int64_t stride() const { return stride_; }
  S* row(int64_t unit) const {
    if constexpr (!kWidens<T, S>)
      if (!beside_) return result_ + unit * stride_;
    return room_ + unit * stride_;
  }
  void store(int64_t unit, int64_t units) const {
    for (int64_t u = unit; beside_ && u < unit + units; ++u) narrow_row(result_ + u * width_, row(u), width_);
  }

 private:
  T* result_;
  int64_t width_, stride_;
  bool beside_;
  Buffer<S> room_;
};

// The operand of the weights' gradients that is one row for each row of the chunk: x, h before each step, or h before
// its projection. Packed in panels: B[k][n], in pairs where these are multiplied.
template <class T>
class PackedRows {
  using S = Arithmetic<T>;
  using V = Vec<S>;

 public:
  static constexpr int64_t kWidth = kVectors * V::kLanes;  // of a panel

  struct Row {
    const T *from, *mask;  // times the mask, if there is one
  };

  PackedRows(bool wanted, int64_t room, int64_t width)
      : width_(width), packed_(wanted ? in_lanes(room) * padded<S>(width) : 0), wanted_(wanted) {}

  // Rows begin .. end - 1 of `count`; begin is even.
  void pack(int64_t begin, int64_t end, int64_t count, const Row* rows) const {
    if (!wanted_) return;
    for (int64_t k = begin; k < end; k += 1 + kDotProducts)
      for (int64_t n = 0; n < width_; n += V::kLanes) {
        int64_t first = n / kWidth * kWidth, columns = padded<S>(least(width_ - first, kWidth));
        V value = load(rows[k - begin], n);
        if constexpr (kDotProducts)
          value = pairs_of(rounded(value), k + 1 < end ? rounded(load(rows[k + 1 - begin], n)) : V(0));
        value.store(packed_ + first * in_lanes(count) + in_lanes(k) * columns + n - first);
      }
  }
  const S* panel(int64_t n, int64_t count) const { return packed_ + n * in_lanes(count); }
  int64_t width() const { return width_; }

 private:
  static int64_t in_lanes(int64_t rows) { return kDotProducts ? (rows + 1) / 2 : rows; }
  V load(const Row& row, int64_t n) const {
    V value = V::load(row.from + n, width_ - n);
    return row.mask ? value * V::load(row.mask + n, width_ - n) : value;
  }
  static V rounded(V value) {
    T stored[V::kLanes];
    value.store(stored);
    return V::load(stored);
  }

  int64_t width_;
  Buffer<S> packed_;
  bool wanted_;
};

template <class Cell, class T>
class Sums {
  using S = Arithmetic<T>;
  using V = Vec<S>;
  using E = Operand<T>;
  using Row = typename PackedRows<T>::Row;
  static constexpr int G = Cell::kGates, Q = Cell::kGrads, U = Cell::kVectors, kPlanes = planes_of<Cell>;
  static constexpr int64_t kBlockUnits = 64, kBlockRows = 4 * kTileRows;

 public:
  // room: rows of a chunk at most
  Sums(const ScanParams<T>& params, const ScanGrads<T>& grads, int direction, int64_t rows_at_most)
      : p(params),
        g(grads),
        s(params.shape),
        d(direction),
        room(rows_at_most),
        dw(g.weights[d]),
        w_ih(dw.w_ih, G * s.hidden, s.input),
        w_hh(dw.w_hh, Cell::kRecurrent * s.hidden, s.projected),
        w_hr(dw.w_hr, s.projected, s.hidden),
        H_(padded<S>(s.hidden)),
        bias((Q + U) * H_),
        lost_of_bias((Q + U) * H_),
        x(dw.w_ih, room, s.input),
        h_before(dw.w_hh, room, s.projected),
        hidden(dw.w_hr, room, s.hidden),
        pairs(kDotProducts && G * s.hidden % 2 == 0),
        w_ih_of_dx(g.dx ? p.weights[d].w_ih : nullptr, G * s.hidden, s.input, pairs, s.packed_rows, kBlockRows),
        places(room),
        zeros(s.hidden + s.projected),
        zero_bias(kPanel<S>) {
    zero<T>(zeros, s.hidden + s.projected);
    zero<S>(zero_bias, kPanel<S>);
  }

  // Some threads call this together: first all prepare(), then all add() the chunk.
  void prepare(int64_t member, int64_t members, const Steps& steps, bool first) const {
    int64_t panel = w_ih_of_dx.panel();
    if (first)
      w_ih_of_dx.pack(boundary(s.input, member, members, panel), boundary(s.input, member + 1, members, panel));
    StepIterator<T> walk{{p, d}, zeros};
    int64_t begin = boundary(steps.rows, member, members, 2), end = boundary(steps.rows, member + 1, members, 2);
    Buffer<Row> inputs(end - begin), states(end - begin), outputs(end - begin);
    for (int64_t t = steps.begin, k = -1; t < steps.end; ++t)
      for (int64_t n = 0; n < walk.rows(t); ++n) {
        int64_t r = walk.row(t, n);
        if (!walk.alive(t, n)) {
          int64_t width = p.gates_x ? s.directions * G * s.hidden : s.input;
          if (g.dx && member == 0) zero(g.dx + r * width, width);
          for (int e = 0; e < Cell::kInputs && member == 0; ++e)
            if (T* values = g.inputs[e].values) zero(values + r * input_width(e), input_width(e));
          continue;
        }
        if (++k < begin || k >= end) continue;
        places[k] = r;
        inputs[k - begin] = {p.x + r * s.input, nullptr};
        states[k - begin] = {walk.before(0, t, n), p.h_mask ? p.h_mask + (d * s.rows + n) * s.projected : nullptr};
        outputs[k - begin] = {p.hidden + (d * s.packed_rows + r) * s.hidden, nullptr};
      }
    x.pack(begin, end, steps.rows, inputs);
    h_before.pack(begin, end, steps.rows, states);
    hidden.pack(begin, end, steps.rows, outputs);
  }

  // Of a chunk: the first or the last of this direction, and has the other direction been here?
  struct Turn {
    bool first, last, begun;
  };

  // All gradients but dx. dgates [rows, kPlanes, H] and dh_steps [rows, P] of the chunk.
  void add(int64_t member, int64_t members, const Steps& steps, const E* dgates, const E* dh_steps, Turn turn) const {
    auto share = [&](int64_t n, int64_t i, int64_t grain) { return boundary(n, member + i, members, grain); };
    int64_t row = share(steps.rows, 0, 1), row_end = share(steps.rows, 1, 1);
    for (int e = 0; e < Cell::kInputs; ++e)
      if (g.inputs[e].values) add_input(e, row, row_end, dgates, turn.begun);
    Buffer<S> room(kDotProducts ? kBlockUnits * ((steps.rows + 1) / 2) : 0);
    auto for_units = [&](int64_t n, auto&& f) {
      for (int64_t j = share(n, 0, V::kLanes), end = share(n, 1, V::kLanes); j < end; j += kBlockUnits)
        f(j, least(end - j, kBlockUnits));
    };
    for (int q = 0; q < Q + U; ++q)
      for_units(s.hidden, [&](int64_t j, int64_t units) {
        const E* from = dgates + q * s.hidden + j;
        bool of_vector = q >= Q;
        if (of_vector ? dw.vectors != nullptr : dw.b_ih || dw.b_hh) add_bias(from, steps.rows, units, q * H_ + j, turn);
        if (!of_vector)
          add_gate(q, j, units, columns(from, kPlanes * s.hidden, steps.rows, units, room), steps.rows, turn);
        else if (turn.last && dw.vectors)
          narrow_row(dw.vectors + (q - Q) * s.hidden + j, bias + q * H_ + j, units);
      });
    for_units(dw.w_hr ? s.projected : 0, [&](int64_t j, int64_t units) {
      Columns a = columns(dh_steps + j, s.projected, steps.rows, units, room);
      add_product(w_hr, j, units, a, hidden, steps.rows, turn);
    });
  }

  // dx (+)= dgates W_ih, of some rows of the chunk; the gradient of gates_x is dgates itself
  void add_dx(int64_t begin, int64_t end, const E* dgates, bool begun) const {
    int64_t K = G * s.hidden;
    if (!g.dx) return;
    for (int64_t k = begin; p.gates_x && k < end; ++k)
      for (int64_t n = 0; n < K; n += V::kLanes)
        V::load(dgates + k * kPlanes * s.hidden + n, K - n).store(g.dx + (places[k] * s.directions + d) * K + n, K - n);
    if (p.gates_x) return;
    Buffer<S> tile(kBlockRows * kPanel<S>), wide(kDotProducts && !pairs ? kBlockRows * padded<S>(K) : 0);
    for_panels(w_ih_of_dx.panel(), 0, s.input, false, [&](int64_t n, int64_t columns) {
      for_blocks(end - begin, kBlockRows, [&](int64_t m, int64_t rows) {
        const E* own[kBlockRows];
        const S* a[kBlockRows];
        for (int64_t b = 0; b < rows; ++b) own[b] = dgates + (begin + m + b) * kPlanes * s.hidden;
        as_operands<E, S>(rows, K, own, pairs, wide, a);
        w_ih_of_dx.multiply(rows, a, {n, columns, 0, K}, {zero_bias, 0, tile, kPanel<S>});
        for (int64_t b = 0; b < rows; ++b) {
          T* to = g.dx + places[begin + m + b] * s.input + n;
          if (begun) add_row(tile + b * kPanel<S>, to, columns);
          narrow_row(to, tile + b * kPanel<S>, columns);
        }
      });
    });
  }

 private:
  struct Columns;

  // The recurrent gate whose gradient is plane q, or -1.
  static int recurrent_gate(int q) {
    for (int k = 0; k < Cell::kRecurrent; ++k)
      if (Cell::kRecurrentGrads[k] == q) return k;
    return -1;
  }

  int64_t input_width(int e) const { return g.inputs[e].per_unit ? s.hidden : 1; }

  // The gradient of per-step input e, (+)= its plane, or the sum over the plane's units.
  void add_input(int e, int64_t begin, int64_t end, const E* dgates, bool begun) const {
    for (int64_t k = begin; k < end; ++k) {
      const E* plane = dgates + (k * kPlanes + Q + U + e) * s.hidden;
      T* to = g.inputs[e].values + places[k] * input_width(e);
      V total(0);
      for (int64_t j = 0; j < s.hidden; j += V::kLanes) {
        V value = V::load(plane + j, s.hidden - j);
        total = total + value;
        if (g.inputs[e].per_unit) (begun ? value + V::load(to + j, s.hidden - j) : value).store(to + j, s.hidden - j);
      }
      if (g.inputs[e].per_unit) continue;
      S sum = begun ? V::load(to, 1).v[0] : S(0);
      for (int lane = 0; lane < V::kLanes; ++lane) sum += total.v[lane];
      V(sum).store(to, 1);
    }
  }

  // Units j .. j + units of plane q, which is a gate of x, of h, or of both.
  void add_gate(int q, int64_t j, int64_t units, const Columns& a, int64_t rows, Turn turn) const {
    int k = recurrent_gate(q);
    int64_t unit = q * s.hidden + j, recurrent = k * s.hidden + j;
    if (q < G) add_product(w_ih, unit, units, a, x, rows, turn);
    if (k >= 0) add_product(w_hh, recurrent, units, a, h_before, rows, turn);
    if (turn.last && q < G && dw.b_ih) narrow_row(dw.b_ih + unit, bias + q * H_ + j, units);
    if (turn.last && k >= 0 && dw.b_hh) narrow_row(dw.b_hh + recurrent, bias + q * H_ + j, units);
  }

  // Some columns of the chunk's rows, which are rows of A. They stay where they lie, but for pairs of rows.
  struct Columns {
    const S* from;   // each lane is followed by that of the next column,
    int64_t stride;  // and so far away by that of the next row or pair
  };

  Columns columns(const E* from, int64_t stride, int64_t rows, int64_t units, S* pairs_of_rows) const {
    if constexpr (std::is_same_v<E, S>) {
      return {from, stride};
    } else {
      for (int64_t k = 0; k < rows; k += 2)
        for (int64_t m = 0; m < units; m += V::kLanes) {
          const E* even = from + k * stride + m;
          V odd = k + 1 < rows ? V::load(even + stride, units - m) : V(0);
          pairs_of(V::load(even, units - m), odd).store(pairs_of_rows + k / 2 * kBlockUnits + m);
        }
      return {pairs_of_rows, kBlockUnits};
    }
  }

  // The sums of some columns: short chains of additions, added up with compensation (Kahan, Neumaier): the rounding
  // errors of the outer sum are kept and added at the end.
  void add_bias(const E* from, int64_t rows, int64_t units, int64_t to, Turn turn) const {
    constexpr int64_t kChain = 16;
    int64_t stride = kPlanes * s.hidden;
    for (int64_t m = 0; m < units; m += V::kLanes, to += V::kLanes) {
      V total = turn.first ? V(0) : V::load(bias + to), lost = turn.first ? V(0) : V::load(lost_of_bias + to);
      for (int64_t k = 0; k < rows;) {
        V sum(0);
        for (int64_t end = least(k + kChain, rows); k < end; ++k) sum = sum + V::load(from + k * stride + m, units - m);
        V next = total + sum, added = next - total;
        lost = lost + ((total - (next - added)) + (sum - added));
        total = next;
      }
      if (turn.last) total = where(lost <= lost, total + lost, total);  // beside an infinite total it is not a number
      total.store(bias + to), lost.store(lost_of_bias + to);
    }
  }

  void add_product(const GradAccumulator<T>& sum, int64_t unit, int64_t units, const Columns& columns,
                   const PackedRows<T>& rows, int64_t count, Turn turn) const {
    if (!sum.wanted()) return;
    const S* a[kBlockUnits];
    for (int64_t m = 0; m < units; ++m) a[m] = columns.from + m;
    for_panels(rows.kWidth, 0, rows.width(), false, [&](int64_t n, int64_t width) {
      S* c = sum.row(unit) + n;
      multiply<S>(units, {a, columns.stride}, {rows.panel(n, count), width, count, form_of(kDotProducts)},
                  {turn.first ? zero_bias : c, turn.first ? 0 : sum.stride(), c, sum.stride()});
    });
    if (turn.last) sum.store(unit, units);
  }

  const ScanParams<T>& p;
  const ScanGrads<T>& g;
  const Shape& s;
  int d;
  int64_t room;
  const WeightGrads<T>& dw;
  GradAccumulator<T> w_ih, w_hh, w_hr;
  int64_t H_;                    // H, padded to whole vectors
  Buffer<S> bias, lost_of_bias;  // [Q + U, H_]
  PackedRows<T> x, h_before, hidden;
  bool pairs;  // does dx multiply pairs?
  Matrix<T> w_ih_of_dx;
  Buffer<int64_t> places;  // of a chunk's rows among all
  Buffer<T> zeros;
  Buffer<S> zero_bias;
};

}  // namespace fusedrnn::FUSEDRNN_ISA
