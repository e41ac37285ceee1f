// The narrow waist: everything a driver gets to know about one recurrent layer. No torch here and none below.
//
// T steps, N batch rows, R packed rows, I input, H hidden, P projected (H without projection), G gates, B of them with
// a recurrent part, U unit vectors, A saved values, Q gate gradients (cells.h), D directions. Direction 1 runs t = T-1
// .. 0. All arrays are dense and row-major.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>
#include <tuple>
#include <type_traits>

#include "function.h"

namespace fusedrnn {

// Storage types of 16 bits; arithmetic and the carried cell state are float (double for double).
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

template <class T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

constexpr int kMaxStates = 4, kMaxInputs = 4;

// A cell's constants (cells.h) for callers that know it only at run time.
struct CellTraits {
  const char* name;
  int gates, recurrent, states, vectors, inputs, saved, grads;

  friend bool operator==(const CellTraits& a, const CellTraits& b) {
    auto numbers = [](const CellTraits& t) {
      return std::tuple(t.gates, t.recurrent, t.states, t.vectors, t.inputs, t.saved, t.grads);
    };
    return std::string_view(a.name) == b.name && numbers(a) == numbers(b);
  }
};

struct Shape {
  int64_t steps, rows, packed_rows, input, hidden, projected;  // T, N, R, I, H, P
  int directions;                                              // D

  FUSEDRNN_FN int64_t width(int state) const { return state ? hidden : projected; }
};

// Which rows take which step: a padded batch is a packed batch whose steps are all of one size.
struct Batch {
  const int64_t* offsets;  // [T+1]  step t owns packed rows offsets[t] .. offsets[t+1]-1, batch rows 0, 1, ...
                           // CUDA: null if padded, for offsets[t] = t * N
  const int64_t* lengths;  // [N] or null: row n is frozen from step lengths[n] on, and its outputs there are zero
  const bool* reset;       // [R] or null: true: the states are replaced by the reset states before this step
};

template <class T>
struct Weights {       // of one direction
  const T* w_ih;       // [G, H, I]
  const T* w_hh;       // [B, H, P]
  const T* b_ih;       // [G, H] or null
  const T* b_hh;       // [B, H] or null
  const T* w_hr;       // [P, H] or null
  const T* vectors;    // [U, H] or null
  const void* packed;  // all of them but w_hr, as in packed.h, for inference on the CPU; or null
};

// Zoneout of a state: units keep their value in a step where `keeps` is true; without a mask all keep the fraction
// `fraction` of it, 0 for no zoneout.
struct Zone {
  const bool* keeps;  // [R, D, width] or null
  double fraction;

  FUSEDRNN_FN explicit operator bool() const { return keeps || fraction != 0; }
};

template <class T>
struct State {
  const T* initial;  // [D, N, width]
  const T* reset;    // [D, N, width], or null for zeros
  Zone zone;         // of h: after the projection; of another: after h was made from it
  // written by scan_forward
  T* steps;  // [R, D, width] or null   after every step; backward reads it
  T* last;   // [D, N, width]
};

// A per-step input of the cell, or its gradient.
template <class T>
struct StepInput {
  T* values;      // [R], or [R, H]
  bool per_unit;  // the latter?
};

class Progress;  // cpu/parallel.h

template <class T>
struct ScanParams {
  Shape shape;
  Batch batch;
  // CPU, one direction: of layers that run at the same time, or null. What a step takes of the layer `ahead`, the one
  // below or, in the backward pass, the one above, is there once that has completed it.
  const Progress* ahead;
  Progress* progress;
  Weights<T> weights[2];  // per direction
  const T* x;             // [R, I]              CPU only, as w_ih and b_ih
  const T* gates_x;  // x W_ih^T + b_ih. CPU: [R, D, G, H] in place of x (then I is 0), or null; CUDA: [D, R, G, H],
                     // when training, planes 0 .. G-1 of saved
  const T* h_mask;   // [D, N, P] or null   h is multiplied by it on its way into w_hh, in every step
  StepInput<const T> inputs[kMaxInputs];  // CPU only
  State<T> states[kMaxStates];            // states[0] is h, of width P, and its steps are y; the others have width H
  // written by scan_forward, read by scan_backward
  T* saved;   // [D, R, A, H] or null
  T* hidden;  // [D, R, H] or null   h before its projection; the gradient of w_hr needs it
};

// What backward makes of every step on CUDA: all the caller needs for the gradients that are sums over steps, one GEMM
// each. Rows that take no step are zero.
template <class E>
struct StepGrads {
  E* dgates;    // [D, R, Q, H]
  E* h_prev;    // [D, R, P]   hidden state before each step; null if not wanted
  E* dh_steps;  // [D, R, P]   total gradient of each step's output, with a projection, else null
};

template <class T>
struct WeightGrads {  // of one direction, shaped as in Weights; each null if not wanted
  T *w_ih, *w_hh, *b_ih, *b_hh, *w_hr, *vectors;
};

template <class T>
struct StateGrads {  // each shaped as in State
  // given, null for zeros
  const T* steps;
  const T* last;
  // written
  T* initial;
  T* reset;  // or null
};

template <class T>
struct ScanGrads {
  StateGrads<T> states[kMaxStates];
  T* dx;  // of x [R, I], or of gates_x [R, D, G, H], or null   CPU only, as the next
  StepInput<T> inputs[kMaxInputs];
  WeightGrads<T> weights[2];  // per direction
  StepGrads<T> steps;         // CUDA only
};

// Saved tensors are read-only in backward: running it twice gives the same bits. Results do not depend on the number of
// threads.
template <class T>
struct CpuDriver {
  void (*forward)(const ScanParams<T>&);
  void (*backward)(const ScanParams<T>&, const ScanGrads<T>&);
  void (*packed)(const ScanParams<T>&);  // forward with packed weights; of float only, else null
};

struct Plan;  // cuda/plan.h

struct CudaRun {
  const Plan& plan;
  bool tf32;                              // products of float may round their operands to TF32
  void* stream;                           // cudaStream_t
  std::function<void*(size_t)> allocate;  // memory that lives until the stream has passed; called once at most
};

constexpr int kNoRoom = -1;

// The same on a CUDA device, with all pointers in its memory. The input projection is the caller's there: one GEMM for
// all steps, whose result is overwritten in place by the saved gates. Returns a cudaError_t, or kNoRoom before anything
// is launched if blocks that wait for each other cannot all be co-resident.
template <class T>
struct CudaDriver {
  int (*forward)(const ScanParams<T>&, const CudaRun&);
  int (*backward)(const ScanParams<T>&, const ScanGrads<T>&, const CudaRun&);
};

template <template <class> class Driver>
using ForEveryType = std::tuple<Driver<float>, Driver<double>, Driver<bfloat16>, Driver<float16>>;

// A cell and the kernels that run it; pointers are null where there are none.
struct CellDrivers {
  CellTraits traits;
  ForEveryType<CpuDriver> cpu;
  ForEveryType<CudaDriver> cuda;
};

// LSTM, GRU, RNN_TANH and RNN_RELU are there from the start. Thread-safe; a reference stays valid. find_cell throws
// std::invalid_argument for an unknown name. register_cell adds what a cell of the same name and traits has no driver
// for yet, and throws where that cell has other traits.
const CellDrivers& find_cell(std::string_view name);
void register_cell(const CellDrivers& cell);

// The drivers of a cell of cells.h, as compiled in cpu/ and cuda/.
template <class Cell, class T>
CpuDriver<T> cpu_driver();
template <class Cell, class T>
CudaDriver<T> cuda_driver();

const char* cpu_capability();  // the instruction set in use, as FUSEDRNN_ISA names it

}  // namespace fusedrnn
