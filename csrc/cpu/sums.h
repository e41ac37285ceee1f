// What a backward pass sums over steps: the gradients of x and of the weights, some steps at a time, while the gate
// gradients of these are in the cache. The tile that makes the scan's own products makes these too: a training call
// takes 0.83 to 0.97 of its time with one GEMM of PyTorch's each for all steps (LSTM, T=100, N=16 .. 64, H=128 .. 512),
// and never holds the gate gradients of all steps.
#pragma once

#include "steps.h"

namespace fusedrnn::FUSEDRNN_ISA {

// One weight's gradient [units, width] while it is summed up: in its place, or beside it where that has another type or
// rows that are no whole vectors.
template <class T>
class Sum {
  using S = Arithmetic<T>;

 public:
  Sum(T* result, int64_t units, int64_t width)
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
  void put_down(int64_t unit, int64_t units) const {
    for (int64_t u = unit; beside_ && u < unit + units; ++u) narrow_row(result_ + u * width_, row(u), width_);
  }

 private:
  T* result_;
  int64_t width_, stride_;
  bool beside_;
  Buffer<S> room_;
};

// The operand of the weights' gradients that is one row for each row of the chunk: x, h before each step, or h before
// its projection. Packed in panels: B[k][n].
template <class T>
class Rows {
  using S = Arithmetic<T>;
  using V = Vec<S>;

 public:
  Rows(bool wanted, int64_t room, int64_t width) : width_(width), packed_(wanted ? room * padded<S>(width) : 0) {}

  // Row k of `rows`, times `mask` if there is one.
  void put(int64_t k, int64_t rows, const T* from, const T* mask) const {
    for (int64_t n = 0; n < width_; n += V::kLanes) {
      int64_t first = n / kPanel<S> * kPanel<S>, columns = padded<S>(least(width_ - first, kPanel<S>));
      V value = V::load(from + n, width_ - n);
      if (mask) value = value * V::load(mask + n, width_ - n);
      value.store(packed_ + first * rows + k * columns + n - first);
    }
  }
  const S* panel(int64_t n, int64_t rows) const { return packed_ + n * rows; }
  int64_t width() const { return width_; }

 private:
  int64_t width_;
  Buffer<S> packed_;
};

template <class Cell, class T>
class Sums {
  using S = Arithmetic<T>;
  using V = Vec<S>;
  static constexpr int G = Cell::kGates, Q = Cell::kGrads;
  static constexpr int64_t kBlockUnits = 8 * kTileRows, kBlockRows = 4 * kTileRows;

 public:
  // room: rows of a chunk at most
  Sums(const ScanParams<T>& params, const ScanGrads<T>& grads, int direction, int64_t rows_at_most)
      : p(params),
        g(grads),
        s(params.shape),
        d(direction),
        room(rows_at_most),
        dw(g.sums[d]),
        w_ih(dw.w_ih, G * s.hidden, s.input),
        w_hh(dw.w_hh, G * s.hidden, s.projected),
        w_hr(dw.w_hr, s.projected, s.hidden),
        bias(dw.b_ih || dw.b_hh ? Q * s.hidden : 0),
        x(dw.w_ih, room, s.input),
        h_before(dw.w_hh, room, s.projected),
        hidden(dw.w_hr, room, s.hidden),
        packed_w_ih(g.dx ? G * s.hidden * padded<S>(s.input) : 0),
        zeros(s.hidden + s.projected),
        zero_bias(kPanel<S>) {
    zero<T>(zeros, s.hidden + s.projected);
    zero<S>(zero_bias, kPanel<S>);
  }

  // Some threads call this together: first all prepare(), then all add() the chunk.
  void prepare(int64_t member, int64_t members, const Steps& steps, bool first) const {
    if (g.dx && first) {
      int64_t begin = part(s.input, member, members, kPanel<S>), end = part(s.input, member + 1, members, kPanel<S>);
      pack(p.weights[d].w_ih + begin, end - begin, s.input, G * s.hidden, packed_w_ih + begin * G * s.hidden);
    }
    Walk<T> walk{p, d, zeros};
    int64_t begin = part(steps.rows, member, members, 1), end = part(steps.rows, member + 1, members, 1);
    for (int64_t t = steps.begin; t < steps.end; ++t)
      for (int64_t n = 0, k = p.batch.offsets[t] - steps.first_row; n < walk.rows(t); ++n, ++k) {
        if (k < begin || k >= end) continue;
        int64_t r = walk.row(t, n);
        if (dw.w_ih) x.put(k, steps.rows, p.x + r * s.input, nullptr);
        if (dw.w_hh)
          h_before.put(k, steps.rows, walk.alive(t, n) ? walk.h_before(t, n) : zeros,
                       p.h_mask ? p.h_mask + (d * s.rows + n) * s.projected : nullptr);
        if (dw.w_hr) hidden.put(k, steps.rows, p.hidden + (d * s.packed_rows + r) * s.hidden, nullptr);
      }
  }

  // dgates [rows, Q, H] and dh_steps [rows, P] of the chunk. first, last: of the chunks of this direction; begun: the
  // other direction has been here.
  void add(int64_t member, int64_t members, const Steps& steps, const S* dgates, const S* dh_steps, bool first,
           bool last, bool begun) const {
    if (g.dx)
      add_dx(part(steps.rows, member, members, 1), part(steps.rows, member + 1, members, 1), steps, dgates, begun);
    Buffer<S> columns(kBlockUnits * padded<S>(steps.rows));
    int64_t H = s.hidden, begin = part(H, member, members, V::kLanes), end = part(H, member + 1, members, V::kLanes);
    for (int q = 0; q < Q; ++q) {
      bool of_x = q < G, of_h = q < G - 1 || q == Q - 1;
      int64_t gate = q < G - 1 ? q : G - 1;
      for_blocks(end - begin, kBlockUnits, [&](int64_t m, int64_t units) {
        int64_t j = begin + m;
        const S* a[kBlockUnits];
        transpose(dgates + q * H + j, Q * H, steps.rows, units, columns, a);
        if (bias_wanted()) add_bias(q * H + j, units, steps.rows, a, first);
        if (of_x) add_product(w_ih, gate * H + j, units, a, x, steps.rows, first, last);
        if (of_h) add_product(w_hh, gate * H + j, units, a, h_before, steps.rows, first, last);
        if (!last) return;
        if (of_x && dw.b_ih) narrow_row(dw.b_ih + gate * H + j, bias + q * H + j, units);
        if (of_h && dw.b_hh) narrow_row(dw.b_hh + gate * H + j, bias + q * H + j, units);
      });
    }
    if (!dw.w_hr) return;
    begin = part(s.projected, member, members, V::kLanes), end = part(s.projected, member + 1, members, V::kLanes);
    for_blocks(end - begin, kBlockUnits, [&](int64_t m, int64_t units) {
      const S* a[kBlockUnits];
      transpose(dh_steps + begin + m, s.projected, steps.rows, units, columns, a);
      add_product(w_hr, begin + m, units, a, hidden, steps.rows, first, last);
    });
  }

 private:
  bool bias_wanted() const { return dw.b_ih || dw.b_hh; }

  // dx (+)= dgates W_ih
  void add_dx(int64_t begin, int64_t end, const Steps& steps, const S* dgates, bool begun) const {
    Buffer<S> tile(kBlockRows * kPanel<S>);
    for_panels<S>(0, s.input, false, [&](int64_t n, int64_t columns) {
      for_blocks(end - begin, kBlockRows, [&](int64_t m, int64_t rows) {
        const S* a[kBlockRows];
        for (int64_t b = 0; b < rows; ++b) a[b] = dgates + (begin + m + b) * Q * s.hidden;
        multiply<S>(rows, columns, a, G * s.hidden, packed_w_ih + n * G * s.hidden, zero_bias, 0, tile, kPanel<S>);
        for (int64_t b = 0; b < rows; ++b) {
          T* to = g.dx + (steps.first_row + begin + m + b) * s.input + n;
          if (begun) add_row(tile + b * kPanel<S>, to, columns);
          narrow_row(to, tile + b * kPanel<S>, columns);
        }
      });
    });
  }

  // a[m] = column m of the rows.
  void transpose(const S* from, int64_t stride, int64_t rows, int64_t units, S* columns, const S** a) const {
    int64_t length = padded<S>(rows);
    for (int64_t m = 0; m < units; ++m) a[m] = rows == 1 ? from + m : columns + m * length;
    if (rows == 1) return;
    for (int64_t m = 0; m < units; m += V::kLanes)
      for (int64_t k = 0; k < rows; k += V::kLanes) {
        V block[V::kLanes];
        for (int i = 0; i < V::kLanes; ++i)
          block[i] = k + i < rows ? V::load(from + (k + i) * stride + m, units - m) : V(0);
        exchange<1>(block);
        for (int i = 0; i < V::kLanes && m + i < units; ++i) block[i].store(columns + (m + i) * length + k);
      }
  }

  void add_bias(int64_t unit, int64_t units, int64_t rows, const S* const* a, bool first) const {
    for (int64_t m = 0; m < units; ++m) {
      V lanes = V(0);
      for (int64_t k = 0; k < rows; k += V::kLanes) lanes = lanes + V::load(a[m] + k, rows - k);
      S sum = first ? S(0) : bias[unit + m], each[V::kLanes];
      lanes.store(each);
      for (S value : each) sum += value;
      bias[unit + m] = sum;
    }
  }

  void add_product(const Sum<T>& sum, int64_t unit, int64_t units, const S* const* a, const Rows<T>& rows,
                   int64_t count, bool first, bool last) const {
    if (!sum.wanted()) return;
    for_panels<S>(0, rows.width(), false, [&](int64_t n, int64_t columns) {
      S* c = sum.row(unit) + n;
      multiply<S>(units, columns, a, count, rows.panel(n, count), first ? zero_bias : c, first ? 0 : sum.stride(), c,
                  sum.stride());
    });
    if (last) sum.put_down(unit, units);
  }

  const ScanParams<T>& p;
  const ScanGrads<T>& g;
  const Shape& s;
  int d;
  int64_t room;
  const WeightGrads<T>& dw;
  Sum<T> w_ih, w_hh, w_hr;
  Buffer<S> bias;  // [Q, H]
  Rows<T> x, h_before, hidden;
  Buffer<S> packed_w_ih;  // [G*H, I]
  Buffer<T> zeros;
  Buffer<S> zero_bias;
};

}  // namespace fusedrnn::FUSEDRNN_ISA
