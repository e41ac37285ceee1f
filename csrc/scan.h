// The narrow waist: everything a driver gets to know about one recurrent layer. No torch here and none below.
//
// T steps, N batch rows, R packed rows, I input, H hidden, P projected (H without projection), G gates, A saved values,
// Q gate gradients (cells.h), D directions. Direction 1 runs t = T-1 .. 0. All arrays are dense and row-major.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <type_traits>

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

enum class CellKind { kLstm, kGru, kRnnTanh, kRnnRelu };

struct CellSizes {  // a cell's constants (cells.h) for callers that know it only at run time
  int gates, saved, grads;
};

struct Shape {
  int64_t steps, rows, packed_rows, input, hidden, projected;  // T, N, R, I, H, P
  int directions;                                              // D
};

// Which rows take which step: a padded batch is a packed batch whose steps are all of one size.
struct Batch {
  const int64_t* offsets;  // [T+1]  step t owns packed rows offsets[t] .. offsets[t+1]-1, batch rows 0, 1, ...
                           // CUDA: null if padded, for offsets[t] = t * N
  const int64_t* lengths;  // [N] or null: row n is frozen from step lengths[n] on, and its outputs there are zero
  const bool* reset;       // [R] or null: true cuts a row before that step: its state is selected, never multiplied
};

template <class T>
struct Weights {  // of one direction
  const T* w_ih;  // [G, H, I]
  const T* w_hh;  // [G, H, P]
  const T* b_ih;  // [G, H] or null
  const T* b_hh;  // [G, H] or null
  const T* w_hr;  // [P, H] or null
};

// Zoneout of h or c: its units keep their value in a step where `keeps` is true; without it all keep the same share of
// their value, 0 for no zoneout.
struct Zone {
  const bool* keeps;  // [R, D, width] or null
  double share;

  explicit operator bool() const { return keeps || share != 0; }
};

template <class T>
struct ScanParams {
  Shape shape;
  Batch batch;
  Weights<T> weights[2];  // per direction
  const T* x;             // [R, I]              CPU only, as w_ih and b_ih
  const T* gates_x;       // [D, R, G, H]        CUDA only: x W_ih^T + b_ih; when training, planes 0 .. G-1 of saved
  const T* h0;            // [D, N, P]
  const T* c0;            // [D, N, H]           LSTM only, as every c below
  const T* reset_h;       // [D, N, P] or null   state behind a cut; null stands for zeros
  const T* reset_c;       // [D, N, H] or null
  const T* h_mask;        // [D, N, P] or null   h is multiplied by it on its way into w_hh, in every step
  Zone zone_h;            // width P; after the projection
  Zone zone_c;            // width H; after h was made from c
  // written by scan_forward, read by scan_backward
  T* y;        // [R, D, P]
  T* c_steps;  // [R, D, H] or null   cell state after every step; backward needs it
  T* saved;    // [D, R, A, H] or null   backward needs it
  T* hidden;   // [D, R, H] or null   hidden state before projection; the gradient of w_hr needs it
  T* h_n;      // [D, N, P]   or y, of one step
  T* c_n;      // [D, N, H]
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
  T *w_ih, *w_hh, *b_ih, *b_hh, *w_hr;
};

template <class T>
struct ScanGrads {
  // given
  const T* dy;        // [R, D, P] or null, as the three below
  const T* dh_n;      // [D, N, P]
  const T* dc_n;      // [D, N, H]
  const T* dc_steps;  // [R, D, H]
  // made
  T* dh0;                  // [D, N, P]
  T* dc0;                  // [D, N, H]
  T* dreset_h;             // [D, N, P] or null
  T* dreset_c;             // [D, N, H] or null
  T* dx;                   // [R, I] or null   CPU only, as the next
  WeightGrads<T> sums[2];  // per direction
  StepGrads<T> steps;      // CUDA only
};

// Saved tensors are read-only in scan_backward: running it twice gives the same bits. Results do not depend on the
// number of threads.
template <class T>
void scan_forward_cpu(CellKind cell, const ScanParams<T>& params);
template <class T>
void scan_backward_cpu(CellKind cell, const ScanParams<T>& params, const ScanGrads<T>& grads);

// The same on a CUDA device, with all pointers in its memory. The input projection is the caller's there: one GEMM for
// all steps, whose result gives way to the saved values. Returns a cudaError_t, or kNoRoom before anything is launched,
// if the device cannot run all blocks at once that have to.
constexpr int kNoRoom = -1;

struct Plan;  // cuda/plan.h

struct CudaRun {
  const Plan& plan;
  bool tf32;                              // products of float may round their operands to TF32
  void* stream;                           // cudaStream_t
  std::function<void*(size_t)> allocate;  // memory that lives until the stream has passed; called once at most
};

template <class T>
int scan_forward_cuda(CellKind cell, const ScanParams<T>& params, const CudaRun& run);
template <class T>
int scan_backward_cuda(CellKind cell, const ScanParams<T>& params, const ScanGrads<T>& grads, const CudaRun& run);

const char* cpu_capability();  // the instruction set in use: "DEFAULT", "AVX2", "AVX512" or "AVX512_BF16"

}  // namespace fusedrnn
