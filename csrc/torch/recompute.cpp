#include "recompute.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/repeat_interleave.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

namespace fusedrnn {
namespace {

using at::Tensor;

struct RowsBefore {
  Tensor n;                   // [R]  the batch row of each packed row
  std::vector<Tensor> index;  // of each direction, [R]: the place of the state before the row's step. Places 0 .. R-1
                              // are the states after those rows, N initial ones follow, then N reset ones
};

RowsBefore rows_before(const ScanInputs& in) {
  auto options = in.x.options().dtype(at::kLong);
  int64_t N = in.initial[0].size(1), R = in.x.numel() / in.x.size(-1);
  Tensor sizes =
      in.batch_sizes.defined() ? in.batch_sizes.to(options.device(), at::kLong) : at::full({in.x.size(0)}, N, options);
  int64_t T = sizes.numel();
  Tensor starts = sizes.cumsum(0) - sizes;
  Tensor t = at::repeat_interleave(at::arange(T, options), sizes, 0, R);
  Tensor n = at::arange(R, options) - starts.index_select(0, t);
  RowsBefore rows{n, {}};
  for (int64_t d = 0; d < in.directions(); ++d) {
    Tensor step = d ? t + 1 : t - 1;
    Tensor exists = (step >= 0) & (step < T);
    step = step.clamp(0, T - 1);
    exists = exists & (n < sizes.index_select(0, step));
    if (in.lengths.defined()) exists = exists & (step < in.lengths.index_select(0, n));
    Tensor before = at::where(exists, starts.index_select(0, step) + n, R + n);
    if (in.reset.defined()) {
      Tensor mask = in.reset.flatten();
      if (d) mask = exists & mask.index_select(0, before.masked_fill(~exists, 0));
      before = at::where(mask, R + N + n, before);
    }
    rows.index.push_back(before);
  }
  return rows;
}

// State k before each step, [D, R, width].
Tensor state_before(const ScanInputs& in, const ScanOutputs& out, const RowsBefore& rows, size_t k) {
  const Tensor& initial = in.initial[k];
  Tensor reset = in.reset_states.empty() ? at::zeros_like(initial) : in.reset_states[k];
  Tensor steps = out.steps[k].reshape({-1, initial.size(0), initial.size(2)});
  std::vector<Tensor> states;
  for (int64_t d = 0; d < in.directions(); ++d)
    states.push_back(at::cat({steps.select(1, d), initial[d], reset[d]}).index_select(0, rows.index[d]));
  return at::stack(states);
}

}  // namespace

void recompute(const std::string& cell, const ScanInputs& in, ScanOutputs* out) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  out->steps.resize(in.initial.size());
  auto defined = [](const Tensor& t) { return t.defined(); };
  if (in.is_one_step() || !std::all_of(out->steps.begin(), out->steps.end(), defined)) {
    *out = scan_forward(cell, true, false, in);
    return;
  }
  RowsBefore rows = rows_before(in);
  ScanInputs one_step;
  one_step.x = in.x.reshape({1, -1, in.x.size(-1)});
  for (size_t k = 0; k < in.initial.size(); ++k) one_step.initial.push_back(state_before(in, *out, rows, k));
  for (const Tensor& t : in.step_inputs)
    one_step.step_inputs.push_back(t.dim() == in.x.dim() ? t.reshape({1, -1, t.size(-1)}) : t.reshape({1, -1}));
  if (in.h_mask.defined()) one_step.h_mask = in.h_mask.index_select(1, rows.n);
  for (auto kind : kWeightKinds) one_step.*kind = in.*kind;
  ScanOutputs made = scan_forward(cell, true, false, one_step);
  out->saved = made.saved, out->hidden = made.hidden;
}

}  // namespace fusedrnn
