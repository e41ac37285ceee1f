// The weights of a layer as the forward pass reads them, and the two products that make the gates.
#pragma once

#include "steps.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class Cell, class T>
class Gates {
  using S = Arithmetic<T>;
  static constexpr int G = Cell::kGates, B = Cell::kRecurrent, U = Cell::kVectors;
  static constexpr bool kIsBfloat16 = std::is_same_v<T, bfloat16> && std::endian::native == std::endian::little;

 public:
  // one_chunk: W_ih is used once.
  Gates(const ScanParams<T>& params, bool one_chunk)
      : p(params),
        s(params.shape),
        packs_(s.packed_rows >= kRowsWorthPacking),
        one_chunk_(one_chunk),
        input_pairs(packs_ && kIsBfloat16 && kDotProducts && s.input % 2 == 0),
        pairs(packs_ && kIsBfloat16 && s.projected % 2 == 0 && (kDotProducts || few_rows())),
        H_(padded<S>(s.hidden)),
        w_ih(packs_ ? s.directions * G * s.input * H_ >> input_pairs : 0),
        w_hh(packs_ ? s.directions * B * s.projected * H_ >> pairs : 0),
        b_ih(s.directions * G * H_),
        b_hh(s.directions * B * H_),
        vectors_(s.directions * U * H_) {}

  // Each thread packs a part.
  void pack(const Partition& part) const {
    for_packed<S>(part, s.hidden, [&](int64_t begin, int64_t end) {
      for_panels<S>(begin, end, false, [&](int64_t j, int64_t columns) { pack_units(part, j, columns); });
    });
  }

  // Where W_ih is used once, each panel is packed just before its use, so that packed panels never leave the cache. Not
  // where rows are split: there every thread needs all panels.
  bool packs_input_late(const Partition& part) const {
    return packs_ && one_chunk_ && (part.splits_units() || part.members == 1);
  }

  // Gate g of units j .. j + columns: c = b + a W^T. `panel` is room for one of W_ih that is packed late.
  void input_part(const Partition& part, int64_t j, int g, int64_t columns, int64_t rows, const S* const* a, S* panel,
                  S* c, int64_t c_stride) const {
    Product product{p.weights[part.d].w_ih, w_ih, b_ih, part.d, G, s.input, input_pairs};
    if (!packs_input_late(part)) return multiply_by(product, j, g, columns, rows, a, c, c_stride);
    pack_gate(product.w + (g * s.hidden + j) * s.input, columns, s.input, input_pairs, panel);
    multiply<S>(rows, columns, a, s.input, panel, bias(product, g, j), 0, c, c_stride, input_pairs);
  }
  void recurrent_part(int d, int64_t j, int g, int64_t columns, int64_t rows, const S* const* a, S* c,
                      int64_t c_stride) const {
    multiply_by({p.weights[d].w_hh, w_hh, b_hh, d, B, s.projected, pairs}, j, g, columns, rows, a, c, c_stride);
  }

  const S* vector(int d, int u) const { return vectors_ + (d * U + u) * H_; }

 private:
  // One of the two products, of one direction.
  struct Product {
    const T* w;       // [gates, H, k]
    const S* packed;  // [gates*H_, k], perhaps in pairs
    const S* bias;    // [D, gates, H_]
    int d, gates;
    int64_t k;
    bool pairs;
  };

  // Few rows are bound by the bytes of W_hh: then it stays bfloat16 and is widened in every step.
  bool few_rows() const { return s.rows == 1 || (s.rows <= kTileRows && is_large<Cell, S>(s)); }

  void pack_units(const Partition& part, int64_t j, int64_t columns) const {
    const Weights<T>& w = p.weights[part.d];
    int64_t I = s.input, P = s.projected;
    for (int g = 0; g < G; ++g) {
      int64_t unit = g * s.hidden + j;
      if (packs_ && !packs_input_late(part))
        pack_gate(w.w_ih + unit * I, columns, I, input_pairs,
                  w_ih + at(part.d, G, j, g, columns) * I / (1 + input_pairs));
      pack_row(w.b_ih, unit, columns, b_ih + (part.d * G + g) * H_ + j);
    }
    for (int g = 0; g < B; ++g) {
      int64_t unit = g * s.hidden + j;
      if (packs_)
        pack_gate(w.w_hh + unit * P, columns, P, pairs, w_hh + at(part.d, B, j, g, columns) * P / (1 + pairs));
      pack_row(w.b_hh, unit, columns, b_hh + (part.d * B + g) * H_ + j);
    }
    for (int u = 0; u < U; ++u) pack_row(w.vectors, u * s.hidden + j, columns, vectors_ + (part.d * U + u) * H_ + j);
  }

  static void pack_gate(const T* w, int64_t columns, int64_t k, bool in_pairs, S* packed) {
    (in_pairs ? pack_transposed_pairs<T, S> : pack_transposed<T, S>)(w, columns, k, k, packed);
  }

  static void pack_row(const T* row, int64_t unit, int64_t columns, S* packed) {
    if (row)
      widen_row(packed, row + unit, columns);
    else
      zero(packed, padded<S>(columns));
  }

  // The packed row where the panel of gate g of units j .. j + columns begins. The gates of a unit lie together.
  int64_t at(int d, int gates, int64_t j, int g, int64_t columns) const {
    return (d * H_ + j) * gates + g * padded<S>(columns);
  }
  const S* bias(const Product& product, int g, int64_t j) const {
    return product.bias + (product.d * product.gates + g) * H_ + j;
  }

  void multiply_by(const Product& product, int64_t j, int g, int64_t columns, int64_t rows, const S* const* a, S* c,
                   int64_t c_stride) const {
    int64_t k = product.k, panel = at(product.d, product.gates, j, g, columns) * k >> product.pairs;
    if (packs_)
      multiply(rows, columns, a, k, product.packed + panel, bias(product, g, j), 0, c, c_stride, product.pairs);
    else
      multiply_unpacked(rows, columns, a, k, product.w + (g * s.hidden + j) * k, bias(product, g, j), c, c_stride);
  }

  const ScanParams<T>& p;
  const Shape& s;
  bool packs_, one_chunk_;

 public:
  const bool input_pairs, pairs;  // do the products with W_ih and W_hh multiply pairs of bfloat16?

 private:
  int64_t H_;            // H, padded to whole vectors
  Buffer<S> w_ih, w_hh;  // [D] packed matrices [G*H_, I] and [B*H_, P], perhaps in pairs
  Buffer<S> b_ih, b_hh;  // [D, G, H_] and [D, B, H_]
  Buffer<S> vectors_;    // [D, U, H_]
};

}  // namespace fusedrnn::FUSEDRNN_ISA
