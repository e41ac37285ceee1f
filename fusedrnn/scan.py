"""The scan of one recurrent layer, and by whom it is done.

Eager calls go to the compiled kernels through a ``torch::autograd::Function`` of the extension, which first looks at
every tensor: its memory is read only if it is dense and holds its values itself. A compiled or exported graph gets the
kernels as opaque operators, and so does who watches or stands between (modes, tracers, fake and functional tensors,
subclasses with ``__torch_function__``, bits that negate or conjugate). Whatever is left (derivatives of higher order,
function transforms, forward-mode derivatives, other devices and dtypes, tensors of which only their own operations know
the values) is done by :mod:`fusedrnn.reference`, as torch.nn would: with operations of PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import kernels, onnx, operators, reference

# The vectors of the CPU kernels hold units of one row, those of PyTorch's operations hold rows. With at most so many
# units and at least so many rows, the latter are faster.
FEW_UNITS = {"LSTM": 1, "GRU": 2, "RNN_TANH": 3, "RNN_RELU": 3}
MOST_FEW_UNITS, MANY_ROWS = max(FEW_UNITS.values()), 1000


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
    h_dtype = None
    if torch._C._is_any_autocast_enabled():
        tensors = (x, h0, c0, reset_h, reset_c, h_mask, *weights)
        (x, h0, c0, reset_h, reset_c, h_mask, *weights), h_dtype = _autocast(mode, batch_sizes is not None, *tensors)
    args = (x, h0, c0, batch_sizes, lengths, reset, reset_h, reset_c, h_mask, zone_h, zone_c)
    compiling = torch.compiler.is_compiling()
    traced = compiling or torch._C._get_tracing_state() is not None
    if not traced and h0.shape[-1] <= MOST_FEW_UNITS and _suits_torch(mode, c_sequence, args, weights):
        y, h_n, c_n = reference.torch_layer(mode, x, h0, c0, weights)
        return y, h_n, c_n, None
    found = None if compiling else kernels.scan(mode, c_sequence, recompute, args, weights)
    if found is not None:
        y, h_n, c_n, c_steps = found
    elif _use_reference((*args, *weights), compiling):
        y, h_n, c_n, c_steps = reference.scan(mode, x, h0, c0, weights, *args[3:])
    elif onnx.is_exporting():
        y, h_n, c_n = onnx.layer(mode, x, h0, c0, weights, (*args[3:], c_sequence))
        c_steps = None
    else:
        if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
            training = recompute = True  # in whatever grad mode: the graph may be run in the other
        else:
            training = torch.is_grad_enabled() and any(
                t is not None and t.requires_grad for t in (x, h0, c0, reset_h, reset_c, *weights)
            )
        keep_gates, keep_c = training and not recompute, c_sequence or training and recompute
        y, h_n, c_n, c_steps, _, _ = operators.scan_forward(mode, keep_gates, keep_c, *args, list(weights))
    if h_dtype is not None:
        y, h_n = y.to(h_dtype), h_n.to(h_dtype)
    return y, h_n, c_n if c0 is not None else None, c_steps if c_sequence and c0 is not None else None


def _autocast(mode: str, packed: bool, *tensors: Tensor | None) -> tuple[list[Tensor | None], torch.dtype | None]:
    """The tensors in the dtype in which autocast has the layer run, float64 and integers as they are; and the dtype of
    y and h_n if it is another.

    Results have the dtypes of torch.nn's. That is autocast's own dtype, but on the CPU only products have it, and all
    else goes by type promotion: a GRU is in the dtype of h0 if that is wider, an LSTM in that of c0, and only the h
    that a projection makes remains narrow. What comes out wide is wide from the beginning. A padded LSTM is all narrow
    without a projection: there it is one operation of oneDNN's.
    """
    x, h0, c0 = tensors[:3]
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return list(tensors), None
    dtype = narrow = torch.get_autocast_dtype(device)
    state, projected = {"LSTM": c0, "GRU": h0}.get(mode), len(tensors) - 6 in (3, 5, 6, 10)
    if device == "cpu" and state is not None and (mode == "GRU" or packed or projected or h0.dim() == 2):
        dtype = torch.promote_types(narrow, state.dtype)
    cast = Tensor.to if torch.compiler.is_compiling() else kernels.cached_cast
    wide = {dtype, torch.float64}
    found = [t if t is None or not t.is_floating_point() or t.dtype in wide else cast(t, dtype) for t in tensors]
    return found, narrow if projected and dtype is not narrow else None


def _suits_torch(mode: str, c_sequence: bool, args: Sequence[Tensor | None], weights: Sequence[Tensor]) -> bool:
    """Has the layer so few units and so many rows that PyTorch's operations, which vectorise over rows, are faster?"""
    x, h0, c0, *options = args
    return (
        h0.shape[-2] >= MANY_ROWS
        and weights[1].shape[-1] == h0.shape[-1] <= FEW_UNITS[mode]
        and len(weights) in (2, 4, 8)
        and x.is_cpu
        and x.dtype in ((torch.float64,) if mode == "LSTM" else (torch.float32, torch.float64))
        and not c_sequence
        and all(option is None for option in options)
        and kernels._C is not None
        and operators.can_take((*args, *weights))
    )


def _use_reference(tensors: Sequence[Tensor | None], compiling: bool = False) -> bool:
    """Is this a case that only plain PyTorch can do? The first tensor is x."""
    x = tensors[0]
    if (
        kernels._C is None
        or x.dtype not in kernels.DTYPES
        or not (x.is_cpu or x.is_meta or (x.is_cuda and kernels._C.cuda_version))
    ):
        return True
    return not compiling and not operators.can_take(tensors)


def _gradients(mode, args, weights, outputs, grads, wanted, plain):
    """The backward pass of the eager path; plain: the kernels may read all of the tensors, and nobody watches."""
    differentiable = torch.is_grad_enabled()  # the gradients themselves shall be
    if plain and not differentiable:
        return kernels.gradients(mode, args, weights, *outputs, grads, wanted)
    if differentiable or _use_reference((*args, *weights, *outputs, *grads)):
        return reference.gradients(mode, args, weights, grads, wanted)
    return operators.gradients(mode, args, weights, outputs, grads, wanted)


kernels.set_gradients(_gradients)
