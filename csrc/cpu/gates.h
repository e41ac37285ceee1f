// The weights of a layer as the forward pass reads them, and the two products that make the gates.
#pragma once

#include "../packed.h"
#include "steps.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class Cell, class T>
class Gates {
  using S = Arithmetic<T>;
  static constexpr int G = Cell::kGates, B = Cell::kRecurrent, U = Cell::kVectors;
  static constexpr bool kIsBfloat16 = std::is_same_v<T, bfloat16> && std::endian::native == std::endian::little;

 public:
  // One of the two products, W_ih's or W_hh's, of one direction.
  struct Product {
    const T* w;     // [gates, H, k]
    S* packed;      // [gates*H_, k], perhaps in pairs
    const S* bias;  // [gates, H_]
    int d, gates;
    int64_t k, panel;
    bool pairs;
  };
  using Part = PackedPart;  // of one panel
  struct To {
    S* c;
    int64_t stride;
  };

  // one_chunk: W_ih is used once.
  Gates(const ScanParams<T>& params, bool one_chunk)
      : p(params),
        s(params.shape),
        packs(s.packed_rows >= kRowsWorthPacking),
        one_chunk_(one_chunk),
        pairs_of_x(packs && kIsBfloat16 && kDotProducts && s.input % 2 == 0),
        pairs(packs && kIsBfloat16 && s.projected % 2 == 0 && (kDotProducts || few_rows())),
        H_(padded<S>(s.hidden)),
        w_ih(packs ? s.directions * G * s.input * H_ >> pairs_of_x : 0),
        w_hh(packs ? s.directions * B * s.projected * H_ >> pairs : 0),
        b_ih(s.directions * G * H_),
        b_hh(s.directions * B * H_),
        vectors(s.directions * U * H_) {}

  // Each thread packs a part.
  void pack(const Partition& part) const {
    const Weights<T>& w = p.weights[part.d];
    if (packs && !packs_input_late(part)) pack_gates(part, of_input(part.d));
    if (packs) pack_gates(part, recurrent(part.d));
    for_packed<S>(part, s.hidden, Vec<S>::kLanes, [&](int64_t begin, int64_t end) {
      pack_rows(w.b_ih, G, begin, end, b_ih + part.d * G * H_);
      pack_rows(w.b_hh, B, begin, end, b_hh + part.d * B * H_);
      pack_rows(w.vectors, U, begin, end, vectors + part.d * U * H_);
    });
  }

  // Where W_ih is used once, each panel is packed just before its use, so that packed panels never leave the cache. Not
  // where rows are split: there every thread needs all panels.
  bool packs_input_late(const Partition& part) const {
    return packs && one_chunk_ && (part.splits_units() || part.members == 1);
  }

  Product of_input(int d) const {
    return {p.weights[d].w_ih, w_ih, b_ih + d * G * H_, d, G, s.input, panel_for<S>(s.packed_rows), pairs_of_x};
  }
  Product recurrent(int d) const {
    return {p.weights[d].w_hh, w_hh, b_hh + d * B * H_, d, B, s.projected, panel_for<S>(s.rows), pairs};
  }
  Strided<const S> vectors_of(int d) const { return {vectors + d * U * H_, H_}; }

  // Rows as products take them, in `room` of operand_room() numbers a row where they have to be changed.
  int64_t operand_room() const { return kWidens<T, S> ? padded<S>(s.input > s.hidden ? s.input : s.hidden) : 0; }
  void take_operands(const Product& product, int64_t count, const T* const* rows, S* room, const S** a) const {
    as_operands<T, S>(count, product.k, rows, product.pairs, room, a);
  }

  // c = b + a W^T. `room` is for a panel of W_ih that is packed late.
  void input_part(const Partition& part, const Part& of, int64_t rows, const S* const* a, S* room, const To& to) const {
    Product product = of_input(part.d);
    if (!packs_input_late(part)) return multiply_by(product, of, rows, a, to);
    pack_gate(product, of, room);
    multiply<S>(rows, {a}, {room, of.columns, product.k, form_of(product.pairs)},
                {product.bias + of.g * H_ + of.j, 0, to.c, to.stride});
  }
  void multiply_by(const Product& product, const Part& of, int64_t rows, const S* const* a, const To& to) const {
    const S* bias = product.bias + of.g * H_ + of.j;
    if (!packs)
      return multiply_unpacked(rows, of.columns, a, product.k, product.w + (of.g * s.hidden + of.j) * product.k, bias,
                               to.c, to.stride);
    multiply<S>(rows, {a}, {packed(product, of), of.columns, product.k, form_of(product.pairs)},
                {bias, 0, to.c, to.stride});
  }

 private:
  // Few rows are bound by the bytes of W_hh: then it stays bfloat16 and is widened in every step.
  bool few_rows() const { return s.rows == 1 || (s.rows <= kTileRows && is_large<Cell, S>(s)); }

  void pack_gates(const Partition& part, const Product& product) const {
    for_packed<S>(part, s.hidden, product.panel, [&](int64_t begin, int64_t end) {
      for_panels(product.panel, begin, end, false, [&](int64_t j, int64_t columns) {
        for (int g = 0; g < product.gates; ++g) pack_gate(product, {j, g, columns}, packed(product, {j, g, columns}));
      });
    });
  }
  void pack_gate(const Product& product, const Part& of, S* to) const {
    int64_t k = product.k;
    (product.pairs ? pack_transposed_pairs<T, S> : pack_transposed<T, S>)(product.w + (of.g * s.hidden + of.j) * k,
                                                                          of.columns, k, k, product.panel, to);
  }

  // The gates of a unit lie together.
  S* packed(const Product& product, const Part& of) const {
    int64_t row = (product.d * H_ + of.j) * product.gates + of.g * padded<S>(of.columns);
    return product.packed + (row * product.k >> product.pairs);
  }

  // Units begin .. end of some rows [H], zeros where there are none.
  void pack_rows(const T* rows, int count, int64_t begin, int64_t end, S* to) const {
    for (int i = 0; i < count; ++i)
      if (rows)
        widen_row(to + i * H_ + begin, rows + i * s.hidden + begin, end - begin);
      else
        zero(to + i * H_ + begin, padded<S>(end - begin));
  }

  const ScanParams<T>& p;
  const Shape& s;
  bool packs, one_chunk_, pairs_of_x, pairs;
  int64_t H_;            // H, padded to whole vectors
  Buffer<S> w_ih, w_hh;  // [D] packed matrices [G*H_, I] and [B*H_, P], perhaps in pairs
  Buffer<S> b_ih, b_hh;  // [D, G, H_] and [D, B, H_]
  Buffer<S> vectors;     // [D, U, H_]
};

}  // namespace fusedrnn::FUSEDRNN_ISA
