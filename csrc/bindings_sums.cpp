#include "bindings_sums.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>

#include <algorithm>

namespace fusedrnn {

using at::Tensor;

std::vector<Tensor> sum_over_steps(const Tensor& x, const Tensor& h0, const Tensor& y,
                                   const std::vector<Tensor>& weights, const std::optional<Tensor>& hidden,
                                   const std::vector<bool>& wanted, const Tensor& dgates,
                                   const std::optional<Tensor>& h_prev, const std::optional<Tensor>& dh_steps) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  int64_t D = dgates.size(0), R = dgates.size(1), H = dgates.size(3), P = h0.size(-1), GH = weights[0].size(0);
  size_t count = weights.size() / D;
  int64_t shared = GH - H;  // dr differs from dx in its last gate at most, the last plane then
  Tensor rows = x.reshape({R, x.size(-1)}), initial = h0.reshape({D, h0.size(-2), P});
  int64_t N = std::min(initial.size(1), R);
  std::vector<Tensor> found(1 + weights.size());
  if (wanted[0]) found[0] = at::empty(x.sizes(), x.options());
  for (size_t i = 0; i < weights.size(); ++i)
    if (wanted[1 + i]) found[1 + i] = at::empty(weights[i].sizes(), x.options());

  for (int64_t d = 0; d < D; ++d) {
    Tensor planes = dgates[d].flatten(1), dgates_x = planes.slice(1, 0, GH);  // [R, Q*H] and [R, G*H]
    Tensor* own = &found[1 + d * count];
    bool own_last = planes.size(1) > GH;
    if (wanted[0]) {
      Tensor dx = found[0].view({R, x.size(-1)});
      if (d)
        dx.addmm_(dgates_x, weights[d * count]);
      else
        at::mm_out(dx, dgates_x, weights[0]);
    }
    if (own[0].defined()) at::mm_out(own[0], dgates_x.t(), rows);
    if (own[1].defined()) {
      auto add = [&](int64_t from, int64_t to, const Tensor& h, bool first) {  // of rows from .. to - 1
        auto product = [&](Tensor sum, const Tensor& part) {
          if (first)
            at::mm_out(sum, part.slice(0, from, to).t(), h);
          else
            sum.addmm_(part.slice(0, from, to).t(), h);
        };
        if (!own_last) return product(own[1], planes);
        product(own[1].slice(0, 0, shared), planes.slice(1, 0, shared));
        product(own[1].slice(0, shared), planes.slice(1, GH));
      };
      // The first step begins with the initial state, the others with y of N rows before; direction 1 from the end.
      auto states = [&](int64_t from, int64_t to) { return y.reshape({R, D, P}).select(1, d).slice(0, from, to); };
      if (h_prev) {
        add(0, R, (*h_prev)[d], true);
      } else if (d == 0) {
        add(0, N, initial[d].slice(0, 0, N), true);
        if (N < R) add(N, R, states(0, R - N), false);
      } else {
        add(R - N, R, initial[d].slice(0, 0, N), true);
        if (N < R) add(0, R - N, states(N, R), false);
      }
    }
    if (count >= 4 && own[2].defined()) at::sum_out(own[2], dgates_x, 0);
    if (count >= 4 && own[3].defined()) {
      if (!own_last && own[2].defined()) {
        own[3].copy_(own[2]);  // the same numbers, but each parameter's gradient is its own
      } else {
        Tensor sums = planes.sum(0);
        own[3].slice(0, 0, shared).copy_(sums.slice(0, 0, shared));
        own[3].slice(0, shared).copy_(sums.slice(0, planes.size(1) - H));
      }
    }
    if (hidden && own[count - 1].defined()) at::mm_out(own[count - 1], (*dh_steps)[d].t(), (*hidden)[d]);
  }
  return found;
}

}  // namespace fusedrnn
