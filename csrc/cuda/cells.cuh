// The (row, unit) pairs of a block, dealt out to its threads, and what becomes of them from step to step.
#pragma once

#include "backward.cuh"
#include "product.cuh"

namespace fusedrnn::cuda {

// The (row, unit) pairs of a block of kGroups groups at most, and which of them a thread has: 16 units lie side by
// side, then rows, then groups. Its pairs are of kRowSlots rows.
template <int N, int kGroups>
struct Pairs {
  static constexpr int kRows = N * kTileRows, kAll = kGroups * kGroup * kRows;
  static constexpr int kEach = kAll > kThreads ? kAll / kThreads : 1;
  static constexpr int kRowStep = kThreads / kGroup;
  static constexpr int kRowSlots = kRows > kRowStep ? kRows / kRowStep : 1;
  static constexpr int kUnitStep = kRows > kRowStep ? kGroup : kRowStep / kRows * kGroup;

  const int first_row = device::keep(threadIdx.x / kGroup % kRows),
            first_unit = device::keep(threadIdx.x / (kGroup * kRows) * kGroup + threadIdx.x % kGroup);

  __device__ static constexpr int slot(int p) { return p % kRowSlots; }  // of the row of the thread's pair p
  __device__ int row(int p) const { return first_row + slot(p) * kRowStep; }
  __device__ int unit(int p) const { return first_unit + p / kRowSlots * kUnitStep; }
};

// The pairs of one thread.
template <class Stage, int N, int kGroups, class T>
class Cells {
 public:
  using S = Arithmetic<T>;
  using Layout = Pairs<N, kGroups>;
  static constexpr int kPairs = Layout::kEach, kSlots = Layout::kRowSlots;

  const Layout layout;

  // Of the block that has `units` units from first_unit on, and the rows from first_row on.
  __device__ Cells(const Args<T>& args, int d, int64_t first_row, int64_t first_unit, int units)
      : a_(args), it_(args.p, d, Stage::kBackward, Stage::width(args.p.shape)) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      n_[slot] = first_row + layout.row(slot);
      length_[slot] = it_.length(n_[slot]);
    }
    j_ = first_unit + layout.unit(0);
    uint32_t has_pair = 0, real = 0;
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const bool in_block = layout.unit(p) < units, in_layer = n(p) < args.p.shape.rows && j(p) < it_.width();
      unit_[p] = in_block ? layout.unit(p) : units - 1;
      has_pair |= uint32_t{in_block} << p, real |= uint32_t{in_block && in_layer} << p;
    }
    has_ = device::keep(has_pair), real_ = device::keep(real);
    each([&](int p) { fixed_[p] = Stage::Fixed::load(a_.p, at(p), Stage::kBackward); });
  }

  // Does the block have pair p of this thread? Its unit there, or the last one's.
  __device__ bool has(int p) const { return has_ >> p & 1; }
  __device__ int unit(int p) const { return unit_[p]; }
  __device__ const StepIterator<T>& iterator() const { return it_; }
  __device__ int64_t n(int p) const { return n_[Layout::slot(p)]; }
  __device__ int64_t j(int p) const { return j_ + p / kSlots * Layout::kUnitStep; }

  // Before step number 0, or in a kernel of its own before a later one.
  __device__ void start() {
    each([&](int p) { carry_[p] = Stage::start(a_, it_, n(p), j(p)); });
  }
  __device__ void resume(int64_t step) {
    each([&](int p) { carry_[p] = Stage::Carry::load(a_, at(p)); });
    if constexpr (Stage::kBackward) {
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) row_[slot] = it_.row(it_.steps(step - 1), n_[slot], length_[slot]);
    }
  }
  __device__ void suspend() const {
    each([&](int p) { carry_[p].store(a_, at(p)); });
  }

  // Starts to read what a step needs, or what the step after that does, once the former's step() is done.
  __device__ void read(const Steps& s) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) next_[slot] = it_.row(s, n_[slot], length_[slot]);
    read_inputs();
  }
  __device__ void read_next(const Steps& s) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) it_.advance(s, n_[slot], length_[slot], &next_[slot]);
    read_inputs();
  }
  // Goes on to the step that was read, or beyond the last.
  __device__ void enter() {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) reset_[slot] = row_[slot].reset, row_[slot] = next_[slot];
  }

  // out: what the next product sums over; of a pair that is not real 0.
  __device__ void step(const S (&sums)[kPairs][Stage::kTiles], S (&out)[kPairs][Stage::kPlanesOut]) {
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      Row row = this->row(p);
      row.reset = row.reset && real(p);
      Stage::step(a_, row, reset_[Layout::slot(p)] && real(p), at(p), fixed_[p], inputs_[p], sums[p], &carry_[p],
                  &made_[p], out[p]);
#pragma unroll
      for (int plane = 0; plane < Stage::kPlanesOut; ++plane)
        if (!real(p)) out[p][plane] = 0;
    }
  }
  __device__ void store() const {
    Stage::store(a_, [&](auto&& f) {
      each([&](int p) {
        if (row(p).there) f(row(p), j(p), made_[p]);
      });
    });
  }
  // sums: of the product after the last step, if the stage wants it.
  __device__ void finish(const S (&sums)[kPairs][Stage::kTiles]) const {
    each([&](int p) { Stage::finish(a_, at(p), reset_[Layout::slot(p)], fixed_[p], sums[p], carry_[p]); });
  }

 private:
  __device__ void read_inputs() {
    Stage::read(a_, [&](auto&& f) {
      each([&](int p) {
        const Row& next = next_[Layout::slot(p)];
        if (next.alive) f(next, j(p), inputs_[p]);
      });
    });
  }
  // Does the layer have the row and the unit?
  __device__ bool real(int p) const { return real_ >> p & 1; }
  __device__ const Row& row(int p) const { return row_[Layout::slot(p)]; }
  __device__ int64_t at(int p) const { return it_.state(n(p), j(p)); }

  template <class F>
  __device__ void each(F&& f) const {
#pragma unroll
    for (int p = 0; p < kPairs; ++p)
      if (real(p)) f(p);
  }

  const Args<T>& a_;
  const StepIterator<T> it_;
  int64_t n_[kSlots], length_[kSlots], j_;
  bool reset_[kSlots] = {};                   // before the step, after the one before
  Row row_[kSlots] = {}, next_[kSlots] = {};  // of the step, and of that which is read
  uint32_t has_, real_;                       // a bit a pair
  int unit_[kPairs];
  typename Stage::Fixed fixed_[kPairs] = {};
  typename Stage::Carry carry_[kPairs] = {};
  typename Stage::Inputs inputs_[kPairs] = {};
  typename Stage::Made made_[kPairs] = {};
};

}  // namespace fusedrnn::cuda
