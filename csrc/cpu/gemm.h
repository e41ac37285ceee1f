// C = A B for the scan: A is a list of row pointers (states live wherever they were last written), C an L1-resident
// tile or a weight's gradient. B is packed in panels of some vectors of columns, or, for products too few to pay for
// packing, a weight as PyTorch keeps it: its rows are rows of B (kRowsWorthPacking) or columns
// (multiply_unpacked).
//
// Each element of C is made by one order of operations over k that knows neither the other rows nor the other columns:
// results do not depend on how rows or columns are divided among threads.
#pragma once

#include "vec.h"

namespace fusedrnn::FUSEDRNN_ISA {

constexpr int kTileRows = 6;
constexpr int64_t kRowsWorthPacking = 12;  // weights that meet fewer rows are used as they are
// Blocked summation bounds the rounding error: a sum is made of sums of so many terms. Sums of products of bfloat16
// pairs are one chain: their error vanishes beside that of rounding the operands.
constexpr int64_t kTerms = 128;
// Of a panel that only few rows meet: they are too few to hide the latency of multiply-adds by fewer.
constexpr int kMostVectors = 4;
constexpr int64_t kFewRows = 2;
template <class S>
constexpr int64_t kPanel = kMostVectors * Vec<S>::kLanes;  // columns at most
// Columns of the panels that at most so many rows meet at a time.
template <class S>
FUSEDRNN_FN int64_t panel_for(int64_t rows) {
  return (rows <= kFewRows ? kMostVectors : kVectors) * Vec<S>::kLanes;
}

FUSEDRNN_FN int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
template <class S>
FUSEDRNN_FN int64_t padded(int64_t columns) {
  return (columns + Vec<S>::kLanes - 1) / Vec<S>::kLanes * Vec<S>::kLanes;
}

// Moves bit `Half` of the row's number to the lane's number and back, for all rows: all bits make a transposition.
template <int Half, class S>
FUSEDRNN_FN void exchange(Vec<S> (&rows)[Vec<S>::kLanes]) {
  using V = Vec<S>;
  if constexpr (Half < V::kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < V::kLanes; ++i) {
      if (i & Half) continue;
      V a = rows[i], b = rows[i + Half];
      rows[i] = V::template low_halves<Half>(a, b), rows[i + Half] = V::template high_halves<Half>(a, b);
    }
    exchange<2 * Half>(rows);
  }
}

// Rows of a square block, as row(i) gives them, become its columns: the first `columns` of them, `stride` apart. Whole
// blocks are a case of their own, without a test for each row.
template <class S, class F>
FUSEDRNN_FN void transpose_block(F&& row, int64_t columns, S* to, int64_t stride) {
  constexpr int kLanes = Vec<S>::kLanes;
  Vec<S> rows[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) rows[i] = row(i);
  exchange<1>(rows);
  if (columns >= kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i].store(to + i * stride);
  } else {
    for (int i = 0; i < columns; ++i) rows[i].store(to + i * stride);
  }
}

// B[k][n] = w[n * stride + k]: panel after panel, row k of a panel contiguous; missing columns are zero.
template <class T, class S>
void pack_transposed(const T* w, int64_t n_count, int64_t stride, int64_t k_count, int64_t panel, S* packed) {
  using V = Vec<S>;
  for (int64_t n0 = 0; n0 < n_count; n0 += panel) {
    int64_t width = padded<S>(least(n_count - n0, panel));
    for (int64_t n = 0; n < width; n += V::kLanes)
      for (int64_t k = 0; k < k_count; k += V::kLanes) {
        const T* from = w + (n0 + n) * stride + k;
        int64_t rows = n_count - n0 - n, columns = k_count - k;
        S* to = packed + k * width + n;
        if (rows >= V::kLanes && columns >= V::kLanes)
          transpose_block([&](int i) { return V::load(from + i * stride); }, columns, to, width);
        else
          transpose_block([&](int i) { return i < rows ? V::load(from + i * stride, columns) : V(0); }, columns, to,
                          width);
      }
    packed += k_count * width;
  }
}

// B[k][n] = w[k * stride + n]
template <class T, class S>
void pack(const T* w, int64_t n_count, int64_t stride, int64_t k_count, int64_t panel, S* packed) {
  using V = Vec<S>;
  for (int64_t n0 = 0; n0 < n_count; n0 += panel)
    for (int64_t k = 0; k < k_count; ++k)
      for (int64_t n = n0; n < n0 + panel && n < n_count; n += V::kLanes, packed += V::kLanes)
        V::load(w + k * stride + n, n_count - n).store(packed);
}

// bfloat16 of an even k_count, not widened: one lane holds B[k][n] and B[k+1][n], as they lie in w or, below, in two
// rows.
template <class T, class S>
void pack_transposed_pairs(const T* w, int64_t n_count, int64_t stride, int64_t k_count, int64_t panel, S* packed) {
  pack_transposed(reinterpret_cast<const S*>(w), n_count, stride / 2, k_count / 2, panel, packed);
}
FUSEDRNN_FN Vec<float> pairs_of(Vec<float> even, Vec<float> odd) {
  using Unsigned = Register<float>::Unsigned;
  return (Vec<float>::Raw)((Unsigned)even.v >> 16 | (Unsigned)odd.v);
}
template <class T, class S>
void pack_pairs(const T* w, int64_t n_count, int64_t stride, int64_t k_count, int64_t panel, S* packed) {
  using V = Vec<S>;
  if constexpr (std::is_same_v<T, bfloat16>)
    for (int64_t n0 = 0; n0 < n_count; n0 += panel)
      for (int64_t k = 0; k < k_count; k += 2)
        for (int64_t n = n0; n < n0 + panel && n < n_count; n += V::kLanes, packed += V::kLanes)
          pairs_of(V::load(w + k * stride + n, n_count - n), V::load(w + (k + 1) * stride + n, n_count - n))
              .store(packed);
}
FUSEDRNN_FN Vec<float> even_of_pairs(Vec<float> pairs) {
  return (Vec<float>::Raw)((Register<float>::Unsigned)pairs.v << 16);
}
FUSEDRNN_FN Vec<float> odd_of_pairs(Vec<float> pairs) {
  return (Vec<float>::Raw)((Register<float>::Unsigned)pairs.v & 0xffff0000u);
}

// The type of what is made to be A of a product.
template <class T>
using Operand = std::conditional_t<kDotProducts, T, Arithmetic<T>>;

// Rows as A: as they are for a product of pairs by pairs, else in the type of arithmetic, in `wide` where theirs is
// another.
template <class E, class S>
void as_operands(int64_t count, int64_t k, const E* const* rows, bool in_pairs, S* wide, const S** a) {
  for (int64_t m = 0; m < count; ++m) {
    if (std::is_same_v<E, S> || (kDotProducts && in_pairs)) {
      a[m] = reinterpret_cast<const S*>(rows[m]);
    } else {
      S* row = wide + m * padded<S>(k);
      for (int64_t j = 0; j < k; j += Vec<S>::kLanes) Vec<S>::load(rows[m] + j, k - j).store(row + j);
      a[m] = row;
    }
  }
}

// A: rows, and how far apart the numbers of each are: 1, or of a matrix whose columns they are.
template <class S>
struct Rows {
  const S* const* at;
  int64_t stride = 1;
};

// What a panel holds: numbers of the type of arithmetic, what pack_pairs packed, or float16.
enum class Form { kNumbers, kPairs, kHalves };
FUSEDRNN_FN Form form_of(bool pairs) { return pairs ? Form::kPairs : Form::kNumbers; }

// B: a panel of k rows, one after the other as they are packed, or `stride` apart in a matrix: whole vectors then.
template <class S>
struct Panel {
  const S* at;
  int64_t columns, k;
  Form form = Form::kNumbers;
  int64_t stride = 0;  // in numbers of S, whatever the form
};

// C: sums c[m] that begin as init[m]. An init_stride of 0 adds one bias to all rows; init = c accumulates.
template <class S>
struct Target {
  const S* init;
  int64_t init_stride;
  S* c;
  int64_t stride;
};

// What tiles are handed of these is in structs of two words, which go by registers: larger ones are copied through
// memory.
template <class E>
struct Strided {
  E* at;
  int64_t stride;
};

// sum[m] += column a[m][at]; of pairs where `Dots`.
template <bool Dots, int M, int NV, class S>
FUSEDRNN_FN void add_products(Vec<S> (&sum)[M][NV], const S* const (&row)[M], int64_t at, const Vec<S> (&column)[NV]) {
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    S value;  // or a pair
    std::memcpy(&value, row[m] + at, sizeof value);
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      if constexpr (Dots)
        sum[m][v] = add_dot(sum[m][v].v, column[v].v, Vec<S>(value).v);
      else
        sum[m][v] = sum[m][v] + column[v] * Vec<S>(value);
    }
  }
}

// c[m][0 .. NV vectors) = init[m] + sum[m]
template <int M, int NV, class S>
FUSEDRNN_FN void add_sums(const Vec<S> (&sum)[M][NV], Strided<const S> init, Strided<S> c) {
  constexpr int L = Vec<S>::kLanes;
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v)
      (Vec<S>::load(init.at + m * init.stride + v * L) + sum[m][v]).store(c.at + m * c.stride + v * L);
}

// One register tile: c[m][0 .. NV vectors) = init[m] + sum_k a[m][k] b[k]. The sums start from zero: GCC spills them
// all where they start from memory. Of pairs, `a` points to pairs of bfloat16 where there are dot products.
template <int M, int NV, Form Of, class S>
void multiply_tile(Rows<S> a, int64_t k_count, Strided<const S> panel, Strided<const S> init, Strided<S> c) {
  using V = Vec<S>;
  constexpr bool kPairs = Of == Form::kPairs, kDots = kPairs && kDotProducts;
  const S *row[M], *b = panel.at;
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) row[m] = a.at[m];
  int64_t k = 0, at = 0;
  do {
    V sum[M][NV];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) sum[m][v] = V(0);
    int64_t end = kDots ? k_count : least(k_count, k + kTerms);
#pragma GCC unroll 2
    for (; k < end; k += 1 + kPairs, b += panel.stride) {
      V column[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v)
        if constexpr (Of == Form::kHalves)
          column[v] = V::load(reinterpret_cast<const float16*>(b) + v * V::kLanes);
        else
          column[v] = V::load(b + v * V::kLanes);
      if constexpr (kPairs && !kDots) {
        V even[NV], odd[NV];
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) even[v] = even_of_pairs(column[v]), odd[v] = odd_of_pairs(column[v]);
        add_products<false>(sum, row, at, even), at += a.stride;
        add_products<false>(sum, row, at, odd), at += a.stride;
      } else {
        add_products<kDots>(sum, row, at, column), at += a.stride;
      }
    }
    add_sums(sum, init, c);
    init = {c.at, c.stride};
  } while (k < k_count);
}

template <class S>
using MultiplyTile = void (*)(Rows<S>, int64_t, Strided<const S>, Strided<const S>, Strided<S>);

template <int NV, Form Of, class S, int... M>
constexpr auto tiles_of(std::integer_sequence<int, M...>) {
  return std::array<MultiplyTile<S>, sizeof...(M)>{multiply_tile<M + 1, NV, Of, S>...};
}
// Of 1, 2, ... rows.
template <int NV, Form Of, class S>
constexpr auto kTiles = tiles_of<NV, Of, S>(std::make_integer_sequence<int, NV <= kVectors ? kTileRows : kFewRows>());

template <Form Of, class S>
FUSEDRNN_FN const MultiplyTile<S>* tiles_for(int64_t vectors) {
  if (vectors == 4) return kTiles<4, Of, S>.data();
  if (vectors == 3) return kTiles<3, Of, S>.data();
  return vectors == 2 ? kTiles<2, Of, S>.data() : kTiles<1, Of, S>.data();
}

// Calls f(first row, rows) for blocks of at most `most` rows, as even as can be: of 8 rows, tiles of 4 + 4 are faster
// than 6 + 2.
template <class F>
FUSEDRNN_FN void for_blocks(int64_t rows, int64_t most, F&& f) {
  for (int64_t m = 0, count = (rows + most - 1) / most; count > 0; --count) {
    int64_t size = count == 1 ? rows - m : (rows - m + count - 1) / count;  // of one row, a division would show
    f(m, size);
    m += size;
  }
}

template <class S>
FUSEDRNN_FN void multiply_by(const MultiplyTile<S>* tiles, int64_t rows, Rows<S> a, const Panel<S>& b,
                             const Target<S>& to) {
  int64_t stride = b.stride ? b.stride : padded<S>(b.columns);
  for_blocks(rows, kTileRows, [&](int64_t m, int64_t size) {
    tiles[size - 1]({a.at + m, a.stride}, b.k, {b.at, stride}, {to.init + m * to.init_stride, to.init_stride},
                    {to.c + m * to.stride, to.stride});
  });
}

// C = init + A B for any number of rows, as many as the panel is for.
template <class S>
void multiply(int64_t rows, Rows<S> a, const Panel<S>& b, const Target<S>& to) {
  int64_t vectors = padded<S>(b.columns) / Vec<S>::kLanes;
  const MultiplyTile<S>* tiles = tiles_for<Form::kNumbers, S>(vectors);
  if constexpr (std::is_same_v<S, float>)
    if (b.form == Form::kPairs) tiles = tiles_for<Form::kPairs, S>(vectors);
  multiply_by(tiles, rows, a, b, to);
}

// As pairs of lanes that differ in bit `Half`: a's sums where the bit is clear, b's where it is set.
template <int Half, class S>
FUSEDRNN_FN Vec<S> sum_lanes(const Vec<S>* rows) {
  using V = Vec<S>;
  if constexpr (Half == 0) {
    return rows[0];
  } else {
    V a = sum_lanes<Half / 2>(rows), b = sum_lanes<Half / 2>(rows + Half);
    return V::template low_halves<Half>(a, b) + V::template high_halves<Half>(a, b);
  }
}

// c[m] = init + a[m] W^T for M rows and up to a vector of columns, rows of W [columns, k]: vectors along k. Of several
// rows, half the columns at a time: registers have no room for more sums.
template <int M, class T, class S>
void multiply_unpacked_tile(int64_t columns, const S* const* a, int64_t k_count, const T* w, const S* init, S* c,
                            int64_t c_stride) {
  using V = Vec<S>;
  constexpr int L = V::kLanes, kColumns = M == 1 ? L : L / 2;
  V sum[M][L];
  auto sum_up = [&]<int First>(std::integral_constant<int, First>) {
    const T *row[kColumns], *next = w + least(First, columns - 1) * k_count;
#pragma GCC unroll 16
    for (int i = 0; i < kColumns; ++i) {
      row[i] = next;
      next += First + i + 1 < columns ? k_count : 0;
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) sum[m][First + i] = V(0);
    }
    auto add = [&](auto load, int64_t k) {
      V x[M];
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) x[m] = load(a[m] + k);
#pragma GCC unroll 16
      for (int i = 0; i < kColumns; ++i) {
        V column = load(row[i] + k);
        if constexpr (M > 1) V::keep(column);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) sum[m][First + i] = sum[m][First + i] + column * x[m];
      }
    };
    int64_t k = 0;
    for (; k + L <= k_count; k += L) add([](const auto* p) { return V::load(p); }, k);
    if (k < k_count) add([&](const auto* p) { return V::load(p, k_count - k); }, k);
  };
  sum_up(std::integral_constant<int, 0>());
  if constexpr (kColumns < L) sum_up(std::integral_constant<int, kColumns>());
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) (V::load(init) + sum_lanes<L / 2>(sum[m])).store(c + m * c_stride);
}

// The same for any number of rows and columns; for few rows only. Three rows share each load of W.
template <class T, class S>
void multiply_unpacked(int64_t rows, int64_t columns, const S* const* a, int64_t k_count, const T* w, const S* init,
                       S* c, int64_t c_stride) {
  constexpr decltype(&multiply_unpacked_tile<1, T, S>) tiles[] = {
      multiply_unpacked_tile<1, T, S>, multiply_unpacked_tile<2, T, S>, multiply_unpacked_tile<3, T, S>};
  for (int64_t n = 0; n < columns; n += Vec<S>::kLanes)
    for (int64_t m = 0; m < rows; m += 3)
      tiles[least(rows - m, 3) - 1](columns - n, a + m, k_count, w + n * k_count, init + n, c + m * c_stride + n,
                                    c_stride);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
