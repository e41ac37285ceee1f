#include "sums.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>

#include <algorithm>

namespace fusedrnn {
namespace {

using at::Tensor;

// gradient of w_hh = sum over rows of dr^T h. dr is the first G-1 planes of dgates and its last one.
class RecurrentSum {
 public:
  RecurrentSum(const Tensor& planes, const Tensor& gradient, int64_t hidden)
      : planes_(planes),
        gradient_(gradient),
        leading_(gradient.size(0) - hidden),
        last_differs_(planes.size(1) > gradient.size(0)) {}

  // The rows from .. to - 1, whose states before the step are h.
  void add(int64_t from, int64_t to, const Tensor& h) {
    if (!last_differs_) {
      product(gradient_, planes_, from, to, h);
    } else {
      product(gradient_.slice(0, 0, leading_), planes_.slice(1, 0, leading_), from, to, h);
      product(gradient_.slice(0, leading_), planes_.slice(1, gradient_.size(0)), from, to, h);
    }
    first_ = false;
  }

 private:
  void product(Tensor sum, const Tensor& part, int64_t from, int64_t to, const Tensor& h) const {
    if (first_)
      at::mm_out(sum, part.slice(0, from, to).t(), h);
    else
      sum.addmm_(part.slice(0, from, to).t(), h);
  }

  const Tensor &planes_, &gradient_;
  int64_t leading_;
  bool last_differs_, first_ = true;
};

void sum_biases(const Tensor& planes, int64_t gates_times_hidden, int64_t hidden, Tensor b_ih, Tensor b_hh) {
  bool last_differs = planes.size(1) > gates_times_hidden;
  if (b_ih.defined()) at::sum_out(b_ih, planes.slice(1, 0, gates_times_hidden), 0);
  if (!b_hh.defined()) return;
  if (!last_differs && b_ih.defined()) {
    b_hh.copy_(b_ih);
    return;
  }
  Tensor sums = planes.sum(0);
  int64_t leading = gates_times_hidden - hidden;
  b_hh.slice(0, 0, leading).copy_(sums.slice(0, 0, leading));
  b_hh.slice(0, leading).copy_(sums.slice(0, planes.size(1) - hidden));
}

Tensor of(const std::vector<Tensor>& tensors, int64_t d) { return tensors.empty() ? Tensor() : tensors[d]; }

}  // namespace

void sum_over_steps(const ScanInputs& in, const ScanOutputs& out, const StepSums& steps, ScanInputs* gradients) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  int64_t D = steps.dgates.size(0), R = steps.dgates.size(1), H = steps.dgates.size(3);
  int64_t P = in.initial[0].size(-1), GH = in.w_hh[0].size(0);
  Tensor rows = in.x.reshape({R, in.x.size(-1)}), initial = in.initial[0].reshape({D, in.initial[0].size(-2), P});
  int64_t N = std::min(initial.size(1), R);
  for (int64_t d = 0; d < D; ++d) {
    Tensor planes = steps.dgates[d].flatten(1), dgates_x = planes.slice(1, 0, GH);  // [R, Q*H] and [R, G*H]
    if (gradients->x.defined() && in.is_projected()) {
      gradients->x.view({R, D, GH}).select(1, d).copy_(dgates_x);
    } else if (gradients->x.defined()) {
      Tensor dx = gradients->x.view({R, in.x.size(-1)});
      if (d)
        dx.addmm_(dgates_x, in.w_ih[d]);
      else
        at::mm_out(dx, dgates_x, in.w_ih[0]);
    }
    if (Tensor w_ih = of(gradients->w_ih, d); w_ih.defined()) at::mm_out(w_ih, dgates_x.t(), rows);
    if (Tensor w_hh = gradients->w_hh[d]; w_hh.defined()) {
      RecurrentSum sum(planes, w_hh, H);
      // The first step begins with the initial state, the others with y of N rows before; direction 1 from the end.
      auto states = [&](int64_t from, int64_t to) {
        return out.steps[0].reshape({R, D, P}).select(1, d).slice(0, from, to);
      };
      if (steps.h_prev.defined()) {
        sum.add(0, R, steps.h_prev[d]);
      } else if (d == 0) {
        sum.add(0, N, initial[d].slice(0, 0, N));
        if (N < R) sum.add(N, R, states(0, R - N));
      } else {
        sum.add(R - N, R, initial[d].slice(0, 0, N));
        if (N < R) sum.add(0, R - N, states(N, R));
      }
    }
    sum_biases(planes, GH, H, of(gradients->b_ih, d), of(gradients->b_hh, d));
    if (Tensor w_hr = of(gradients->w_hr, d); w_hr.defined()) at::mm_out(w_hr, steps.dh_steps[d].t(), out.hidden[d]);
  }
}

}  // namespace fusedrnn
