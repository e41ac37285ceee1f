"""The scan of one recurrent layer, and by whom it is done.

Eager calls go to the compiled kernels through a ``torch::autograd::Function`` of the extension; a compiled or exported
graph gets them as opaque operators. Whatever the kernels do not do (derivatives of higher order, function transforms,
forward-mode derivatives, other devices and dtypes) is done by :mod:`fusedrnn.reference`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import kernels, onnx, operators, reference


def scan(
    mode: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reset_h: Tensor | None = None,
    reset_c: Tensor | None = None,
    h_mask: Tensor | None = None,
    zone_h: Tensor | None = None,
    zone_c: Tensor | None = None,
    c_sequence: bool = False,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Runs one layer, all steps and both directions. The modules have checked the arguments.

    Args:
        mode: ``"LSTM"``, ``"GRU"``, ``"RNN_TANH"`` or ``"RNN_RELU"``, as in :attr:`torch.nn.RNNBase.mode`.
        x: padded input [T, N, I], or packed rows [R, I] together with ``batch_sizes``, or one step [N, I]: then
            neither states nor results have dimensions of steps and directions, and h_n is not to be used: y is it.
        h0: initial hidden state [D, N, P]; its first size says whether the layer is bidirectional (D = 2).
        c0: initial cell state [D, N, H] of an LSTM, else None.
        weights: for each direction ``w_ih [G*H, I], w_hh [G*H, P]``, then ``b_ih, b_hh [G*H]`` or neither,
            then ``w_hr [P, H]`` of a projected LSTM.
        batch_sizes: [T] int64 on the CPU, not increasing: the number of packed rows in each step.
        lengths: [N] int64; row n ends after ``lengths[n]`` steps: later outputs are zero, its state is frozen, and
            the reverse direction starts at its end. Only with padded input.
        reset: bool [T, N] (packed: [R]); True cuts the row between the step before and this one. Forward, the state
            before this step becomes ``reset_h``, ``reset_c``; the reverse direction starts anew on the other side.
        reset_h, reset_c: as h0 and c0; None stands for zeros.
        h_mask: [D, N, P]; h is multiplied by it on its way into w_hh, in every step.
        zone_h: bool [T, N, D*P] (packed: [R, D*P]); True where h keeps its value in a step. Or a number without
            dimensions on the CPU: h becomes that share of its old value and the rest of the new.
        zone_c: the same for c, with H instead of P.
        c_sequence: also return the cell state after every step.
        recompute: keep only the states for the backward pass, which makes the gates again by one GEMM.

    Returns:
        y [T, N, D*P] (packed: [R, D*P]), h_n [D, N, P], c_n [D, N, H] or None, and c of every step [T, N, D*H] or None.
    """
    if torch._C._is_any_autocast_enabled():
        x, h0, c0, reset_h, reset_c, h_mask, *weights = _autocast(x, h0, c0, reset_h, reset_c, h_mask, *weights)
    args = (x, h0, c0, batch_sizes, lengths, reset, reset_h, reset_c, h_mask, zone_h, zone_c)
    compiling = torch.compiler.is_compiling()
    if _use_reference(x, compiling):
        *outputs, c_steps = reference.scan(mode, x, h0, c0, weights, *args[3:])
        return *outputs, c_steps if c_sequence else None
    if compiling or _use_operators(x):
        if torch.onnx.is_in_onnx_export():
            return *onnx.layer(mode, x, h0, c0, weights, (*args[3:], c_sequence)), None
        training = torch.is_grad_enabled() and any(
            t is not None and t.requires_grad for t in (x, h0, c0, reset_h, reset_c, *weights)
        )
        keep_gates, keep_c = training and not recompute, c_sequence or training and recompute
        y, h_n, c_n, c_steps, _, _ = operators.scan_forward(mode, keep_gates, keep_c, *args, list(weights))
        return y, h_n, c_n if c0 is not None else None, c_steps if c_sequence and c0 is not None else None
    return kernels.scan(mode, c_sequence, recompute, args, weights)


def _autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors in the dtype that autocast asks for on the first one's device; float64 and integers stay."""
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors]


def _use_reference(x: Tensor, compiling: bool) -> bool:
    """Is this a case that only plain PyTorch can do?"""
    if (
        kernels._C is None
        or x.dtype not in kernels.DTYPES
        or not (x.is_cpu or x.is_meta or (x.is_cuda and kernels._C.cuda_version))
    ):
        return True
    return not compiling and (forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active())


def _use_operators(x: Tensor) -> bool:
    """Is somebody watching who must see operators of the dispatcher (tracer, fake or meta tensors)?"""
    return (
        x.is_meta
        or type(x) not in (Tensor, torch.nn.Parameter)
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
    )


def _gradients(mode, args, weights, outputs, grads, wanted):
    """The backward pass of the eager path."""
    batched = any(t is not None and not torch._C._has_storage(t) for t in grads)  # autograd's is_grads_batched
    if batched or torch.is_grad_enabled():  # in grad mode the gradients shall be differentiable themselves
        return reference.gradients(mode, args, weights, grads, wanted)
    return kernels.gradients(mode, args, weights, *outputs, grads, wanted)


kernels.set_gradients(_gradients)
