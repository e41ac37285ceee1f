// Which tensors the kernels may read as memory, and when somebody must see a layer as operators of the dispatcher.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/forward_grad.h>

#include "cuda.h"

namespace fusedrnn {

// All that a dense tensor of a device with kernels may have; a sum, as keys and devices have separate bits.
inline constexpr c10::DispatchKeySet kPlainKeys =
    c10::DispatchKeySet({c10::DispatchKey::Dense, c10::DispatchKey::AutogradFunctionality,
                         c10::DispatchKey::ADInplaceOrView, c10::DispatchKey::AutocastCPU,
                         c10::DispatchKey::AutocastCUDA}) |
    c10::DispatchKeySet(c10::BackendComponent::CPUBit) |
    (kWithCuda ? c10::DispatchKeySet(c10::BackendComponent::CUDABit) : c10::DispatchKeySet());

// What the dispatcher has turned into plain tensors, or stopped at, by the time an operator's kernel runs.
inline constexpr c10::DispatchKeySet kDispatchedKeys =
    kPlainKeys |
    c10::DispatchKeySet({c10::DispatchKey::Negative, c10::DispatchKey::Conjugate, c10::DispatchKey::ZeroTensor,
                         c10::DispatchKey::Functionalize}) |
    c10::DispatchKeySet(c10::BackendComponent::MetaBit);

// Are t's values what stands in its memory? Not those of wrappers, fake, functional, sparse, quantised or nested
// tensors, nor where a bit of the tensor says zero, negated or conjugated.
inline bool is_plain(const at::TensorBase& t) { return kPlainKeys.isSupersetOf(t.key_set()); }

inline bool is_dispatched(const at::TensorBase& t) { return kDispatchedKeys.isSupersetOf(t.key_set()); }

// For a plain t: refuses one whose storage was resized to less than it needs.
inline void check_memory(const at::TensorBase& t, const char* name) {
  size_t bytes = at::detail::computeStorageNbytes(t.sizes(), t.strides(), t.itemsize(), t.storage_offset());
  TORCH_CHECK_VALUE(t.storage().nbytes() >= bytes, "fusedrnn: ", name, " needs ", bytes,
                    " bytes, but its storage was resized to ", t.storage().nbytes());
}

inline bool has_kernels(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf;
}

// Is a mode, a tracer, a function transform or forward-mode differentiation active, which the kernels would hide from?
inline bool is_watched() {
  return !c10::default_included_set.isSupersetOf(c10::impl::tls_local_dispatch_key_set().included_) ||
         torch::autograd::ForwardADLevel::try_get_by_idx(0);
}

}  // namespace fusedrnn
