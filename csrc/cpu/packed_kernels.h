// The products of packed.h with tiles of registers. Floats and pairs of bfloat16 go through the tiles of gemm.h; here
// are those of float16, widened as they are loaded, and of int8.
//
// int8: each row of operands becomes bytes with a scale of its own, q = round(127 a / max |a|), in every step. Sums are
// exact integers, so that only rounding weights and operands makes an error.
#pragma once

#include "../packed.h"
#include "gemm.h"

namespace fusedrnn::FUSEDRNN_ISA {

// ---- operands

// NaN where the row has infinity or NaN. Magnitudes compare as their bits do.
FUSEDRNN_FN float largest_magnitude(const float* row, int64_t k) {
  using V = Vec<float>;
  Ints largest = {};
  for (int64_t j = 0; j < k; j += V::kLanes) {
    Ints magnitude = (Ints)V::load(row + j, k - j).v & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  int32_t lanes[V::kLanes], bits = 0;
  std::memcpy(lanes, &largest, sizeof lanes);
  for (int32_t lane : lanes) bits = lane > bits ? lane : bits;
  float result;
  bits |= bits >= 0x7f800000 ? 0x7fc00000 : 0;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// The scale and then the bytes of a row, with kByteOffset added to each.
FUSEDRNN_FN void quantise(const float* row, int64_t k, float* to) {
  using V = Vec<float>;
  constexpr float kRound = 0x1.8p23f;  // numbers added to it are rounded: they are its last bits
  float largest = largest_magnitude(row, k);
  to[0] = largest / 127;
  V factor(largest > 0x1p-120f ? 127 / largest : 0.0f), round(kRound + kByteOffset);
  for (int64_t j = 0; j < k; j += V::kLanes) {
    V q = V::load(row + j, k - j) * factor + round;
    auto bytes = last_bytes((Ints)q.v);
    std::memcpy(to + 1 + j / 4, &bytes, sizeof bytes);
  }
}

inline void take_operands(const PackedMatrix& w, int64_t count, const float* const* rows, float* room,
                          const float** a) {
  bool odd = w.k % kStorageDepth[static_cast<int>(w.storage)], rounds = kDotProducts && w.storage == Storage::kBfloat16;
  for (int64_t m = 0; m < count; ++m) {
    float* to = room + m * operand_room(w);
    a[m] = to;
    if (w.storage == Storage::kInt8)
      quantise(rows[m], w.k, to);
    else if (rounds)
      for (int64_t j = 0; j < w.k; j += Vec<float>::kLanes)
        Vec<float>::load(rows[m] + j, w.k - j).store(reinterpret_cast<bfloat16*>(to) + j);
    else if (odd)
      std::memcpy(to, rows[m], w.k * sizeof(float)), to[w.k] = 0;
    else
      a[m] = rows[m];
  }
}

// ---- int8

struct Bytes {
  const int32_t* at;  // four along k a number
  int64_t stride, k;  // of these
  const float* scales;
  const int32_t* sums;
};

// c = bias + scale of the row * scale of the column * (sum - kByteOffset * sum of the column)
template <int M, int NV>
void multiply_bytes(const float* const* a, const Bytes& w, const float* bias, float* c, int64_t c_stride) {
  using V = Vec<float>;
  constexpr int L = V::kLanes;
  Ints sum[M][NV] = {};
  const int32_t* column = w.at;
  for (int64_t k = 0; k < w.k; ++k, column += w.stride) {
    Ints four[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) std::memcpy(&four[v], column + v * L, sizeof four[v]);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      int32_t value;
      std::memcpy(&value, a[m] + 1 + k, sizeof value);
      Ints operand = Ints{} + value;
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) sum[m][v] = add_products_of_bytes(sum[m][v], operand, four[v]);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    Ints offset;
    std::memcpy(&offset, w.sums + v * L, sizeof offset);
    V scale = V::load(w.scales + v * L), init = V::load(bias + v * L);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      Ints exact = sum[m][v] - kByteOffset * offset;
      (init + scale * V(a[m][0]) * V(__builtin_convertvector(exact, Floats))).store(c + m * c_stride + v * L);
    }
  }
}

using MultiplyBytes = void (*)(const float* const*, const Bytes&, const float*, float*, int64_t);
template <int NV, int... M>
constexpr auto byte_tiles(std::integer_sequence<int, M...>) {
  return std::array<MultiplyBytes, sizeof...(M)>{multiply_bytes<M + 1, NV>...};
}
template <int NV>
constexpr auto kByteTiles = byte_tiles<NV>(std::make_integer_sequence<int, NV <= kVectors ? kTileRows : kFewRows>());

inline const MultiplyBytes* byte_tiles_for(int64_t vectors) {
  if (vectors == 4) return kByteTiles<4>.data();
  if (vectors == 3) return kByteTiles<3>.data();
  return vectors == 2 ? kByteTiles<2>.data() : kByteTiles<1>.data();
}

// ---- products

// Units of one block.
inline void multiply_block(const PackedMatrix& w, PackedPart of, int64_t rows, const float* const* a, const float* bias,
                           float* c, int64_t stride) {
  int64_t all = (w.units + kPackedLanes - 1) / kPackedLanes * kPackedLanes, first = of.j / kPackedUnits * kPackedUnits;
  int64_t width = least(all - first, kPackedUnits), depth = kStorageDepth[static_cast<int>(w.storage)];
  int64_t k = (w.k + depth - 1) / depth, vectors = padded<float>(of.columns) / Vec<float>::kLanes;
  int64_t at = (first * w.gates + of.g * width) * k + of.j - first;
  const std::byte* values = w.values + at * depth * kStorageBytes[static_cast<int>(w.storage)];
  auto floats = reinterpret_cast<const float*>(values);
  switch (w.storage) {
    case Storage::kFloat32:
      return multiply<float>(rows, {a}, {floats, of.columns, k, Form::kNumbers, width}, {bias, 0, c, stride});
    case Storage::kBfloat16:
      return multiply<float>(rows, {a}, {floats, of.columns, 2 * k, Form::kPairs, width}, {bias, 0, c, stride});
    case Storage::kFloat16:
      return multiply_by(tiles_for<Form::kHalves, float>(vectors), rows, {a},
                         {floats, of.columns, k, Form::kHalves, width / 2}, {bias, 0, c, stride});
    case Storage::kInt8: {
      Bytes bytes{reinterpret_cast<const int32_t*>(values), width, k, w.scales + of.g * all + of.j,
                  w.sums + of.g * all + of.j};
      const MultiplyBytes* tiles = byte_tiles_for(vectors);
      for_blocks(rows, kTileRows,
                 [&](int64_t m, int64_t size) { tiles[size - 1](a + m, bytes, bias, c + m * stride, stride); });
    }
  }
}

inline void multiply_packed(const PackedMatrix& w, PackedPart of, int64_t rows, const float* const* a,
                            const float* bias, float* c, int64_t stride) {
  for (int64_t j = 0, columns; j < of.columns; j += columns) {
    columns = least(of.columns - j, kPackedUnits - (of.j + j) % kPackedUnits);
    multiply_block(w, {of.j + j, of.g, columns}, rows, a, bias + j, c + j, stride);
  }
}

const PackedKernels& packed_kernels() {
  static constexpr PackedKernels kernels{take_operands, multiply_packed};
  return kernels;
}

}  // namespace fusedrnn::FUSEDRNN_ISA
