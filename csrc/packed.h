// Weights packed once, for inference. One block of bytes holds those of a layer's direction, in an order that the CPU
// kernels of every instruction set read; fusedrnn/packing.py writes it. Numbers are little-endian.
//
// A block begins with a PackedHeader. Behind it come, each at a multiple of 64 bytes, the values of W_ih and of W_hh
// (PackedMatrix), of int8 the scales and sums of both, then b_ih, b_hh and the unit vectors as floats, rows of H padded
// to a multiple of kPackedLanes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fusedrnn {

constexpr int32_t kPackedVersion = 1;
constexpr int64_t kPackedUnits = 64, kPackedLanes = 16;

enum class Storage : int32_t { kFloat32, kBfloat16, kFloat16, kInt8 };
constexpr int64_t kStorageBytes[] = {4, 2, 2, 1};
constexpr int64_t kStorageDepth[] = {1, 2, 1, 4};

struct PackedHeader {
  int64_t magic, version, storage, gates, recurrent, vectors, input, hidden, projected;

  static constexpr int64_t kMagic = 0x6e6e726465737566;  // "fusedrnn"
};

// W [gates, units, k], 64 units at a time: [units / 64][gates][k / depth][width][depth]. The width is 64 or, of the
// last units, what is left, padded to a multiple of 16. `depth` numbers that follow each other along k lie together: 2
// of bfloat16, 4 of int8, else 1. Missing units and numbers are zero.
struct PackedMatrix {
  Storage storage;
  int gates;
  int64_t units, k;
  const std::byte* values;
  const float* scales;  // of int8 [gates, padded units]: W = scale * value
  const int32_t* sums;  // of int8 [gates, padded units]: the values of a row added up
};

struct PackedWeights {
  PackedMatrix w_ih, w_hh;
  const float *b_ih, *b_hh, *vectors;  // [G, padded H], [B, padded H] and [U, padded H]
  int64_t bytes;                       // of the whole block
};

PackedWeights packed_weights(const void* block);  // one whose header was checked

// Some units of one gate, j .. j + columns.
struct PackedPart {
  int64_t j;
  int g;
  int64_t columns;
};

// Products with packed weights, of one instruction set.
struct PackedKernels {
  // Makes rows [k] the operands a of a product with w, in `room` of operand_room(w) floats a row where they have to be
  // changed.
  void (*take_operands)(const PackedMatrix& w, int64_t count, const float* const* rows, float* room, const float** a);
  // c = bias + a W^T. Of more than two rows, a part is as wide as a panel of that many (panel_for).
  void (*multiply)(const PackedMatrix& w, PackedPart of, int64_t rows, const float* const* a, const float* bias,
                   float* c, int64_t stride);
};

// For products that so many rows meet at a time. Where the processor has products of bfloat16, three rows and more are
// rounded for them; fewer wait for the bytes of the weights in any case, and remain floats.
const PackedKernels& packed_kernels(int64_t rows);
inline int64_t operand_room(const PackedMatrix& w) { return w.k + 2 * kPackedLanes; }

}  // namespace fusedrnn
