// The forward driver of weights that were packed before (packed.h): PackedGates in place of Gates.
#pragma once

#include "../packed.h"
#include "forward.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class Cell>
class PackedGates {
 public:
  struct Product {
    const PackedMatrix* w;
    const float* bias;
    const PackedKernels* kernels;
    bool pairs = false;  // its operands are floats or this product's own
  };
  using Part = PackedPart;
  struct To {
    float* c;
    int64_t stride;
  };

  PackedGates(const ScanParams<float>& params, bool)
      : of_all_steps(fusedrnn::packed_kernels(params.shape.packed_rows)),
        of_one_step(fusedrnn::packed_kernels(params.shape.rows)),
        padded_hidden((params.shape.hidden + kPackedLanes - 1) / kPackedLanes * kPackedLanes) {
    for (int d = 0; d < params.shape.directions; ++d) weights[d] = packed_weights(params.weights[d].packed);
  }

  void pack(const Partition&) const {}
  bool packs_input_late(const Partition&) const { return false; }

  Product of_input(int d) const { return {&weights[d].w_ih, weights[d].b_ih, &of_all_steps}; }
  Product recurrent(int d) const { return {&weights[d].w_hh, weights[d].b_hh, &of_one_step}; }
  Strided<const float> vectors_of(int d) const { return {weights[d].vectors, padded_hidden}; }

  int64_t operand_room() const {
    int64_t x = fusedrnn::operand_room(weights[0].w_ih), h = fusedrnn::operand_room(weights[0].w_hh);
    return x > h ? x : h;
  }
  void take_operands(const Product& product, int64_t count, const float* const* rows, float* room,
                     const float** a) const {
    product.kernels->take_operands(*product.w, count, rows, room, a);
  }
  void input_part(const Partition& part, const Part& of, int64_t rows, const float* const* a, float*,
                  const To& to) const {
    multiply_by(of_input(part.d), of, rows, a, to);
  }
  void multiply_by(const Product& product, const Part& of, int64_t rows, const float* const* a, const To& to) const {
    product.kernels->multiply(*product.w, of, rows, a, product.bias + of.g * padded_hidden + of.j, to.c, to.stride);
  }

 private:
  const PackedKernels &of_all_steps, &of_one_step;
  PackedWeights weights[2];
  int64_t padded_hidden;
};

template <class Cell>
void scan_packed(const ScanParams<float>& params) {
  Forward<Cell, float, PackedGates<Cell>>(params).run();
}

}  // namespace fusedrnn::FUSEDRNN_ISA
