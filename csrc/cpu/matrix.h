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
  // pairs: K is even, and so is every K that products begin or end at; rows: that meet it.
  Matrix(const T* weight, int64_t K, int64_t N, bool pairs, int64_t rows)
      : weight_(weight),
        K_(K),
        N_(N),
        pairs_(pairs),
        packs_(weight && (rows >= kRowsWorthPacking || !std::is_same_v<T, S> || N % Vec<S>::kLanes)),
        packed_(packs_ ? K * padded<S>(N) >> pairs : 0) {}

  // Columns begin .. end - 1. Whoever multiplies by some of a panel's packs these: panels begin where packing began.
  void pack(int64_t begin, int64_t end) const {
    if (!packs_) return;
    S* to = packed_ + ((begin * K_) >> pairs_);
    (pairs_ ? pack_pairs<T, S> : fusedrnn::FUSEDRNN_ISA::pack<T, S>)(weight_ + begin, end - begin, N_, K_, to);
  }

  // c = init + a B for columns n .. n + columns - 1 of one panel and rows first .. first + k - 1 of B.
  void multiply(int64_t rows, int64_t n, int64_t columns, int64_t first, int64_t k, const S* const* a, const S* init,
                int64_t init_stride, S* c, int64_t c_stride) const {
    const S* panel = packed_ + ((n * K_ + first * padded<S>(columns)) >> pairs_);
    if constexpr (std::is_same_v<T, S>)
      if (!packs_) panel = weight_ + first * N_ + n;
    FUSEDRNN_ISA::multiply<S>(rows, columns, a, k, panel, init, init_stride, c, c_stride, pairs_, packs_ ? 0 : N_);
  }

 private:
  const T* weight_;
  int64_t K_, N_;
  bool pairs_, packs_;
  Buffer<S> packed_;
};

}  // namespace fusedrnn::FUSEDRNN_ISA
