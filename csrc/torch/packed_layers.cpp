#include "packed_layers.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <array>
#include <cstring>
#include <tuple>
#include <utility>

#include "../packed.h"
#include "memory.h"
#include "node.h"

namespace fusedrnn {
namespace {

using at::Tensor;

bool is_matrix(const Tensor& t, at::IntArrayRef size) {
  return t.scalar_type() == at::kFloat && t.is_cpu() && t.sizes() == size;
}

Tensor zeros(at::IntArrayRef size, const Tensor& like) {
  Tensor t = empty(size, like.options().requires_grad(false));
  std::memset(t.data_ptr(), 0, t.nbytes());
  return t;
}

ScanInputs inputs_of(const PackedLayers& all, int64_t layer) {
  int64_t kinds = all.projects ? 2 : 1, count = static_cast<int64_t>(all.weights.size()) / all.layers;
  ScanInputs in;
  for (int64_t i = layer * count; i < (layer + 1) * count; i += kinds) {
    in.packed.push_back(all.weights[i]);
    if (all.projects) in.w_hr.push_back(all.weights[i + 1]);
  }
  return in;
}

std::optional<PackedHeader> header_of(const PackedLayers& all) {
  const Tensor& first = all.weights.at(0);
  PackedHeader header;
  if (!first.is_cpu() || !first.is_contiguous() || first.nbytes() < sizeof header) return {};
  std::memcpy(&header, first.const_data_ptr(), sizeof header);
  return header;
}

}  // namespace

std::optional<std::vector<Tensor>> run_packed(const PackedLayers& all, bool batch_first, const Tensor& input,
                                              std::vector<Tensor> states) {
  std::optional<PackedHeader> header = header_of(all);
  if (!header || input.dim() != 3 || !is_matrix(input, {input.size(0), input.size(1), header->input})) return {};
  Tensor x = batch_first ? input.transpose(0, 1) : input;
  int64_t count = static_cast<int64_t>(all.weights.size()) / (all.projects ? 2 : 1), D = count / all.layers;
  int S = find_cell(all.cell).traits.states;
  bool given = !states.empty();
  if (given && states.size() != static_cast<size_t>(S)) return {};
  for (int k = 0; k < S; ++k) {
    std::array<int64_t, 3> size{count, x.size(1), k ? header->hidden : header->projected};
    if (given && !is_matrix(states[k], size)) return {};
    if (!given) states.push_back(k && states[0].sizes() == size ? states[0] : zeros(size, x));
  }
  std::vector<std::vector<Tensor>> last(S);
  for (int64_t layer = 0; layer < all.layers; ++layer) {
    ScanInputs in = inputs_of(all, layer);
    in.x = x;
    for (const Tensor& s : states) in.initial.push_back(all.layers == 1 ? s : s.narrow(0, layer * D, D));
    std::vector<Tensor> made = scan(all.cell, false, false, in);
    x = made[0];
    for (int k = 0; k < S; ++k) last[k].push_back(made[S + k]);
  }
  std::vector<Tensor> results{batch_first ? x.transpose(0, 1) : x};
  for (const auto& of_state : last) results.push_back(all.layers == 1 ? of_state[0] : at::cat(of_state));
  return results;
}

Stream::Stream(const PackedLayers& all, int64_t rows, const std::vector<double>& zones)
    : weights_(all.weights), offsets_{0, rows}, state_count_(find_cell(all.cell).traits.states) {
  forward_ = std::get<CpuDriver<float>>(find_cell(all.cell).cpu).forward;
  std::optional<PackedHeader> first = header_of(all);
  TORCH_CHECK_VALUE(first && zones.size() == state_count_, "fusedrnn: a stream needs packed weights");
  input_ = first->input;
  at::TensorOptions options = at::TensorOptions().dtype(at::kFloat);
  for (int64_t layer = 0; layer < all.layers; ++layer) {
    ScanInputs in = inputs_of(all, layer);
    PackedHeader h;
    std::memcpy(&h, in.packed[0].const_data_ptr(), sizeof h);
    OfLayer own{};
    for (size_t k = 0; k < state_count_; ++k)
      for (auto& states : own.states) states.push_back(at::zeros({rows, k ? h.hidden : h.projected}, options));
    in.x = at::zeros({rows, h.input}, options), in.initial = own.states[0];
    scan_forward(all.cell, false, false, in);  // checks them
    ScanParams<float>& p = own.params;
    p.shape = {1, rows, rows, h.input, h.hidden, h.projected, 1};
    p.weights[0].packed = in.packed[0].const_data_ptr();
    if (all.projects) p.weights[0].w_hr = in.w_hr[0].const_data_ptr<float>();
    for (size_t k = 0; k < state_count_; ++k) p.states[k].zone.fraction = zones[k];
    layers_.push_back(std::move(own));
  }
}

Tensor Stream::step(const Tensor& x) {
  int64_t rows = offsets_[1];
  TORCH_CHECK_VALUE(is_matrix(x, {rows, input_}), "a stream takes float32 [", rows, ", ", input_, "] on the CPU, got ",
                    x.scalar_type(), " ", x.sizes(), " on ", x.device());
  TORCH_CHECK(!x.requires_grad() || !c10::GradMode::is_enabled(), "a stream has no gradients: detach its input");
  Tensor dense = x.contiguous();
  const float* from = dense.const_data_ptr<float>();
  for (OfLayer& layer : layers_) {
    ScanParams<float>& p = layer.params;
    p.x = from;
    p.batch.offsets = offsets_;
    for (size_t k = 0; k < state_count_; ++k) {
      p.states[k].initial = layer.states[turn_][k].const_data_ptr<float>();
      p.states[k].last = layer.states[!turn_][k].data_ptr<float>();
    }
    p.states[0].steps = p.states[0].last;
    forward_(p);
    from = p.states[0].last;
  }
  turn_ = !turn_;
  return layers_.back().states[turn_][0].clone();
}

std::vector<Tensor> Stream::states() const {
  std::vector<Tensor> all(state_count_);
  for (size_t k = 0; k < state_count_; ++k) {
    std::vector<Tensor> of_layers;
    for (const OfLayer& layer : layers_) of_layers.push_back(layer.states[turn_][k]);
    all[k] = at::stack(of_layers);
  }
  return all;
}

void Stream::set_states(const std::vector<Tensor>& states) {
  at::NoGradGuard no_grad;
  for (size_t k = 0; k < state_count_; ++k)
    for (size_t i = 0; i < layers_.size(); ++i)
      layers_[i].states[turn_][k].copy_(states.at(k).select(0, static_cast<int64_t>(i)));
}

}  // namespace fusedrnn
