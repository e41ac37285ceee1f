// A layer as tensors: what it is given, what it makes, and the two passes.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace fusedrnn {

// The tensors of a layer, and the only list of them: operators, autograd and Python follow the order of fields().
// Absent ones are undefined or, of a list, not there. Of one step, x is [N, I] and states have no dimension D.
struct ScanInputs {
  at::Tensor x;                          // [T, N, I], or packed rows [R, I]; without w_ih and b_ih already projected:
                                         // [.., D*G*H]
  std::vector<at::Tensor> initial;       // of each state [D, N, width]; the first is h
  std::vector<at::Tensor> w_ih, w_hh;    // of each direction [G*H, I], or none, and [B*H, P], none for B = 0
  std::vector<at::Tensor> b_ih, b_hh;    // [G*H] and [B*H], or none
  std::vector<at::Tensor> w_hr;          // [P, H], or none
  std::vector<at::Tensor> vectors;       // [U, H], none for U = 0
  std::vector<at::Tensor> packed;        // in place of all of these but w_hr: bytes, see packed.h
  std::vector<at::Tensor> reset_states;  // as initial, or none for zeros
  std::vector<at::Tensor> step_inputs;   // [T, N] or [T, N, H], packed [R] or [R, H]
  at::Tensor batch_sizes;                // [T] int64 on the CPU, of packed rows
  at::Tensor lengths;                    // [N] int64
  at::Tensor reset;                      // [T, N] or [R] bool
  at::Tensor h_mask;                     // [D, N, P]
  std::vector<at::Tensor> zones;         // of each state, or none: bool [T, N, D*width], or a number on the CPU

  template <class Self, class F>
  static void fields(Self& in, F&& f) {
    differentiable_fields(in, f);
    f(in.batch_sizes), f(in.lengths), f(in.reset), f(in.h_mask), f(in.zones);
  }
  template <class Self, class F>
  static void differentiable_fields(Self& in, F&& f) {
    f(in.x), f(in.initial), f(in.w_ih), f(in.w_hh), f(in.b_ih), f(in.b_hh), f(in.w_hr), f(in.vectors);
    f(in.packed);
    f(in.reset_states), f(in.step_inputs);
  }

  std::vector<at::Tensor> differentiable() const;

  bool is_one_step() const { return initial[0].dim() == 2 && !batch_sizes.defined(); }
  int64_t directions() const { return is_one_step() ? 1 : initial[0].size(0); }
  bool is_projected() const { return w_ih.empty() && packed.empty(); }
};

constexpr std::vector<at::Tensor> ScanInputs::* kWeightKinds[] = {
    &ScanInputs::w_ih, &ScanInputs::w_hh,    &ScanInputs::b_ih,  &ScanInputs::b_hh,
    &ScanInputs::w_hr, &ScanInputs::vectors, &ScanInputs::packed};

constexpr char kInputsSchema[] =
    "Tensor x, Tensor[] initial, Tensor[] w_ih, Tensor[] w_hh, Tensor[] b_ih, Tensor[] b_hh, Tensor[] w_hr, "
    "Tensor[] vectors, Tensor[] packed, Tensor[] reset_states, Tensor[] step_inputs, Tensor? batch_sizes, Tensor? "
    "lengths, Tensor? "
    "reset, Tensor? h_mask, Tensor[] zones";

struct ScanOutputs {
  std::vector<at::Tensor> steps;  // of each state [T, N, D*width]; the first is y
  std::vector<at::Tensor> last;   // [D, N, width]; that of h is undefined of one step, where it is y
  at::Tensor saved, hidden;       // [D, R, A, H] and [D, R, H]
};

struct ScanOutputGrads {  // undefined for zeros
  std::vector<at::Tensor> steps, last;
};

// save: also make what the backward pass needs. sequences: also return every state after every step, not h alone.
ScanOutputs scan_forward(const std::string& cell, bool save, bool sequences, ScanInputs inputs);

// The forward pass of layers of which each but the first takes the output of the one below as its x, all at the same
// time on different threads, a chunk of steps behind each other. Results are those of one after the other, to the bit.
// Nothing is done where that would not be faster: with more than one direction, few steps, or rows enough for all
// threads; else begin() is called first.
std::optional<std::vector<ScanOutputs>> scan_layers(const std::string& cell, bool save, std::vector<ScanInputs> inputs,
                                                    const std::function<void()>& begin);

// Returns the gradients of the differentiable inputs in their order, undefined where not wanted. Without outputs.saved
// the gates are made again first: from the states of all steps by one GEMM, or by another forward pass where a state
// was not kept.
std::vector<at::Tensor> scan_backward(const std::string& cell, const ScanInputs& inputs, ScanOutputs outputs,
                                      const ScanOutputGrads& grads, const std::vector<bool>& wanted);

struct BackwardCall {  // the arguments of scan_backward()
  ScanInputs inputs;
  ScanOutputs outputs;
  ScanOutputGrads grads;
  std::vector<bool> wanted;
};

// The backward pass of such layers in the same way: y of each but the last gets its gradient from the one above only,
// so it is not among the grads, and all x but the first one's must be wanted.
std::optional<std::vector<std::vector<at::Tensor>>> scan_layers_backward(const std::string& cell,
                                                                         const std::vector<BackwardCall>& layers);

}  // namespace fusedrnn
