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

bool is_float(const Tensor& t, at::IntArrayRef size) {
  return t.scalar_type() == at::kFloat && t.is_cpu() && t.sizes() == size;
}

Tensor zeros(at::IntArrayRef size, const Tensor& like) {
  Tensor t = empty(size, like.options().requires_grad(false));
  std::memset(t.data_ptr(), 0, t.nbytes());
  return t;
}

// Makes states that are not given, and says whether those that are have this size, the first of [L*D, N, P].
bool take_states(std::vector<Tensor>* states, size_t count, std::array<int64_t, 3> size, int64_t hidden,
                 const Tensor& like) {
  bool given = !states->empty();
  if (given && states->size() != count) return false;
  for (size_t k = 0; k < count; ++k, size[2] = hidden) {
    if (given && !is_float((*states)[k], size)) return false;
    if (!given) states->push_back(k && states->front().size(2) == size[2] ? states->front() : zeros(size, like));
  }
  return true;
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

void check_packed(const Tensor& block, const CellTraits& cell, const Shape& shape, const Tensor& x) {
  auto check = [](bool good, const auto&... what) { TORCH_CHECK_VALUE(good, "fusedrnn: ", what...); };
  check(x.is_cpu() && x.scalar_type() == at::kFloat, "packed weights are for float32 on the CPU, got ", x.scalar_type(),
        " on ", x.device());
  check(block.scalar_type() == at::kByte && block.is_cpu() && block.dim() == 1,
        "a packed block must be bytes on the CPU, got ", block.scalar_type(), " ", block.sizes(), " on ",
        block.device());
  PackedHeader h;
  check(block.numel() >= static_cast<int64_t>(sizeof h), "a packed block begins with ", sizeof h,
        " bytes of its sizes, got ", block.numel());
  std::memcpy(&h, block.const_data_ptr(), sizeof h);
  check(h.magic == PackedHeader::kMagic, "these bytes are no packed weights");
  check(h.version == kPackedVersion, "these weights were packed by another version of fusedrnn, in format ", h.version,
        " instead of ", kPackedVersion, ": pack them again");
  check(h.storage >= 0 && h.storage <= static_cast<int64_t>(Storage::kInt8), "unknown packed numbers: ", h.storage);
  std::array<int64_t, 6> got{h.gates, h.recurrent, h.vectors, h.input, h.hidden, h.projected};
  std::array<int64_t, 6> wanted{cell.gates, cell.recurrent, cell.vectors, shape.input, shape.hidden, shape.projected};
  check(got == wanted, "packed weights must have G, B, U, I, H, P = ", at::IntArrayRef(wanted), ", got ",
        at::IntArrayRef(got));
  int64_t bytes = packed_weights(block.const_data_ptr()).bytes;
  check(bytes == block.numel(), "packed weights of these sizes have ", bytes, " bytes, got ", block.numel());
}

namespace {

// steps and last of each of some layers, the first of which has its x.
std::vector<std::vector<Tensor>> run_layers(const std::string& cell, std::vector<ScanInputs> layers) {
  if (layers.size() > 1)
    if (auto made = scan_layers(cell, layers)) return std::move(*made);
  std::vector<std::vector<Tensor>> results;
  for (ScanInputs& in : layers) {
    if (!results.empty()) in.x = results.back()[0];
    results.push_back(scan(cell, false, false, in));
  }
  return results;
}

}  // namespace

std::optional<std::vector<Tensor>> run_packed(const PackedLayers& all, bool batch_first, const Tensor& input,
                                              std::vector<Tensor> states) {
  std::optional<PackedHeader> header = header_of(all);
  if (!header || input.dim() != 3 || !is_float(input, {input.size(0), input.size(1), header->input})) return {};
  Tensor x = batch_first ? input.transpose(0, 1) : input;
  int64_t count = static_cast<int64_t>(all.weights.size()) / (all.projects ? 2 : 1), D = count / all.layers;
  size_t S = find_cell(all.cell).traits.states;
  if (!take_states(&states, S, {count, x.size(1), header->projected}, header->hidden, x)) return {};
  std::vector<ScanInputs> layers;
  for (int64_t layer = 0; layer < all.layers; ++layer) {
    layers.push_back(inputs_of(all, layer));
    for (const Tensor& s : states) layers.back().initial.push_back(all.layers == 1 ? s : s.narrow(0, layer * D, D));
  }
  layers[0].x = x;
  std::vector<std::vector<Tensor>> made = run_layers(all.cell, std::move(layers)), last(S);
  for (const std::vector<Tensor>& of_layer : made)
    for (size_t k = 0; k < S; ++k) last[k].push_back(of_layer[S + k]);
  const Tensor& y = made.back()[0];
  std::vector<Tensor> results{batch_first ? y.transpose(0, 1) : y};
  for (const auto& of_state : last) results.push_back(all.layers == 1 ? of_state[0] : at::cat(of_state));
  return results;
}

Stream::Stream(const PackedLayers& all, int64_t rows, const std::vector<double>& zones)
    : weights_(all.weights), offsets_{0, rows}, state_count_(find_cell(all.cell).traits.states) {
  forward_ = std::get<CpuDriver<float>>(find_cell(all.cell).cpu).packed;
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
  TORCH_CHECK_VALUE(is_float(x, {rows, input_}), "a stream takes float32 [", rows, ", ", input_, "] on the CPU, got ",
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
