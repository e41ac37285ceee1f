#include "bindings_sums.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>

#include <algorithm>

namespace fusedrnn {
namespace {

using at::Tensor;

// sum (+)= a^T b over the rows of both.
void add_product(Tensor sum, const Tensor& a, const Tensor& b, bool first) {
  if (first)
    at::mm_out(sum, a.t(), b);
  else if (b.size(0))
    sum.addmm_(a.t(), b);
}

void add_rows(Tensor sum, const Tensor& a, bool first) {
  if (first)
    at::sum_out(sum, a, 0);
  else
    sum.add_(a.sum(0));
}

}  // namespace

std::vector<Tensor> sum_over_steps(const Tensor& x, const Tensor& h0, const Tensor& y,
                                   const std::vector<Tensor>& weights, const Tensor& dgates,
                                   const std::optional<Tensor>& h_prev, const std::optional<Tensor>& dh_steps,
                                   const std::optional<Tensor>& hidden, const std::vector<bool>& wanted, bool widens) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  int64_t D = dgates.size(0), R = dgates.size(1), H = dgates.size(3), P = h0.size(-1), GH = weights[0].size(0);
  size_t count = weights.size() / D;
  bool biased = count >= 4, own_last = dgates.size(2) * H > GH;  // dr differs from dx in its last gate, the last plane
  // Products in float32 are made for some rows at a time: copies of all would be the peak of memory in training.
  constexpr int64_t kRowsWidened = 1024;
  int64_t room = widens ? kRowsWidened : std::max<int64_t>(R, 1);
  auto options = x.options().dtype(widens ? at::kFloat : x.scalar_type());
  auto wide = [&](const Tensor& t) { return widens ? t.to(at::kFloat) : t; };

  Tensor rows = x.reshape({R, x.size(-1)}), outputs = y.reshape({R, D, P}), initial = h0.reshape({D, h0.size(-2), P});
  int64_t N = std::min(initial.size(1), R);
  std::vector<Tensor> found(1 + weights.size()), w_ih(D);
  if (wanted[0]) found[0] = at::empty(x.sizes(), x.options());
  for (size_t i = 0; i < weights.size(); ++i)
    if (wanted[1 + i]) found[1 + i] = at::empty(weights[i].sizes(), options);
  for (int64_t d = 0; d < D; ++d)
    if (wanted[0]) w_ih[d] = wide(weights[d * count]);

  for (int64_t begin = 0; begin == 0 || begin < R; begin += room) {
    int64_t end = std::min(begin + room, R);
    bool first = begin == 0;
    Tensor x_rows = wide(rows.slice(0, begin, end)), dx;
    for (int64_t d = 0; d < D; ++d) {
      Tensor* own = &found[1 + d * count];
      Tensor planes = wide(dgates[d].slice(0, begin, end)).flatten(1);  // [rows, Q*H]
      Tensor dgates_x = planes.slice(1, 0, GH);
      if (wanted[0]) {
        Tensor to = widens ? Tensor() : found[0].view({R, x.size(-1)});
        if (d)
          dx.addmm_(dgates_x, w_ih[d]);
        else if (widens)
          dx = at::mm(dgates_x, w_ih[d]);
        else
          dx = at::mm_out(to, dgates_x, w_ih[d]);
      }
      if (own[0].defined()) add_product(own[0], dgates_x, x_rows, first);
      auto add_before = [&](int64_t from, int64_t to, const Tensor& states, bool first) {  // of rows from .. to
        Tensor h = wide(states), part = planes.slice(0, from - begin, to - begin);
        if (!own_last) return add_product(own[1], part, h, first);
        add_product(own[1].slice(0, 0, GH - H), part.slice(1, 0, GH - H), h, first);
        add_product(own[1].slice(0, GH - H), part.slice(1, GH), h, first);
      };
      if (own[1].defined() && h_prev) {
        add_before(begin, end, (*h_prev)[d].slice(0, begin, end), first);
      } else if (own[1].defined()) {
        // The first step begins with the initial state, the others with y of N rows before; direction 1 from the end.
        int64_t edge = std::clamp(d ? R - N : N, begin, end);
        Tensor h = initial[d], earlier = outputs.select(1, d);
        if (d == 0) {
          if (first || edge > begin) add_before(begin, edge, h.slice(0, begin, edge), first);
          if (edge < end) add_before(edge, end, earlier.slice(0, edge - N, end - N), false);
        } else {
          if (first || edge > begin) add_before(begin, edge, earlier.slice(0, begin + N, edge + N), first);
          if (edge < end) add_before(edge, end, h.slice(0, edge - (R - N), end - (R - N)), false);
        }
      }
      if (biased && own[2].defined()) add_rows(own[2], dgates_x, first);
      if (biased && own[3].defined() && own_last) {
        add_rows(own[3].slice(0, 0, GH - H), planes.slice(1, 0, GH - H), first);
        add_rows(own[3].slice(0, GH - H), planes.slice(1, GH), first);
      } else if (biased && own[3].defined() && !own[2].defined()) {
        add_rows(own[3], dgates_x, first);
      }
      if (hidden && own[count - 1].defined())
        add_product(own[count - 1], wide((*dh_steps)[d].slice(0, begin, end)), wide((*hidden)[d].slice(0, begin, end)),
                    first);
    }
    if (wanted[0] && widens) found[0].view({R, x.size(-1)}).slice(0, begin, end).copy_(dx);
  }
  for (int64_t d = 0; biased && !own_last && d < D; ++d)  // the same numbers, but each parameter's gradient is its own
    if (Tensor* own = &found[1 + d * count]; own[2].defined() && own[3].defined()) own[3].copy_(own[2]);
  for (Tensor& t : found)
    if (t.defined()) t = t.to(x.scalar_type());
  return found;
}

}  // namespace fusedrnn
