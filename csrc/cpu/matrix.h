// A weight [K, N] as B of products, its rows B's: packed, each panel's columns together, or as it is where few rows
// meet it and packing would cost more than it saves.
#pragma once

#include "gemm.h"
#include "memory.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class T>
class Matrix {
  using S = Arithmetic<T>;

 public:
  // pairs: K is even, and so is every K that products begin or end at; rows: that meet it, at_once: at a time.
  Matrix(const T* weight, int64_t K, int64_t N, bool pairs, int64_t rows, int64_t at_once)
      : weight_(weight),
        K_(K),
        N_(N),
        panel_(panel_for<S>(at_once)),
        pairs_(pairs),
        packs_(weight && (rows >= kRowsWorthPacking || !std::is_same_v<T, S> || N % Vec<S>::kLanes)),
        packed_(packs_ ? K * padded<S>(N) >> pairs : 0) {}

  // Columns begin .. end - 1. Whoever multiplies by some of a panel's packs these: panels begin where packing began.
  void pack(int64_t begin, int64_t end) const {
    if (!packs_) return;
    S* to = packed_ + ((begin * K_) >> pairs_);
    (pairs_ ? pack_pairs<T, S> : fusedrnn::FUSEDRNN_ISA::pack<T, S>)(weight_ + begin, end - begin, N_, K_, panel_, to);
  }

  int64_t panel() const { return panel_; }  // its columns

  // Columns n .. n + columns - 1, of one panel, and rows first .. first + k - 1.
  struct Part {
    int64_t n, columns, first, k;
  };

  // to = init + a B of that part of B.
  void multiply(int64_t rows, const S* const* a, const Part& of, const Target<S>& to) const {
    Panel<S> panel{packed_ + ((of.n * K_ + of.first * padded<S>(of.columns)) >> pairs_), of.columns, of.k,
                   form_of(pairs_)};
    if constexpr (std::is_same_v<T, S>)
      if (!packs_) panel.at = weight_ + of.first * N_ + of.n, panel.stride = N_;
    FUSEDRNN_ISA::multiply<S>(rows, {a}, panel, to);
  }

 private:
  const T* weight_;
  int64_t K_, N_, panel_;
  bool pairs_, packs_;
  Buffer<S> packed_;
};

}  // namespace fusedrnn::FUSEDRNN_ISA
