"""The kernels as operators of the dispatcher: one opaque node a layer for whoever looks at the graph of a model.

They take the same arguments as the eager path of :mod:`fusedrnn.scan`. Operators have no optional results: what is
absent is empty. Derivatives of higher order are the reference's where autograd can see it; in a compiled graph they are
an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from . import kernels, reference


def can_take(tensors: Iterable[Tensor | None]) -> bool:
    """Can operators of ours take these tensors as they are? If not, only PyTorch's own can.

    A wrapper with ``__torch_dispatch__`` knows those at best, and forward-mode derivatives and function transforms have
    formulas for no others.
    """
    return (
        forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and all(t is None or isinstance(t, (FakeTensor, FunctionalTensor)) or kernels.is_dispatched(t) for t in tensors)
    )


@torch.library.custom_op("fusedrnn::scan_forward", mutates_args=())
def scan_forward(
    mode: str,
    training: bool,
    c_sequence: bool,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    reset_h: Tensor | None,
    reset_c: Tensor | None,
    h_mask: Tensor | None,
    zone_h: Tensor | None,
    zone_c: Tensor | None,
    weights: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns y, h_n (unless y is it), c_n, c of every step, and what the backward pass needs."""
    args = (x, h0, c0, batch_sizes, lengths, reset, reset_h, reset_c, h_mask, zone_h, zone_c)
    outputs = kernels.forward(mode, training, c_sequence, args, weights)
    return tuple(x.new_empty(0) if t is None else t for t in outputs)


@scan_forward.register_fake
def _(mode, training, c_sequence, x, h0, c0, *args):
    weights = args[-1]
    zones = [(name, z) for name, z in (("zone_h", args[6]), ("zone_c", args[7])) if z is not None]
    for name, z in zones:
        if not z.dim() and z.device.type != "cpu":
            raise ValueError(f"fusedrnn: {name} of one number must be on the CPU, got {z.device}")
    for t in (h0, c0, *args[1:6], *weights, *(z for _, z in zones if z.dim())):  # batch_sizes are on the CPU
        if t is not None and t.device != x.device:
            raise ValueError(f"fusedrnn: all tensors of a layer must be on {x.device}, got one on {t.device}")
    directions, projected = h0.size(0) if h0.dim() == 3 else 1, h0.size(-1)
    gates, rows = kernels.GATES[mode], math.prod(x.shape[:-1])  # Size.numel() would fix the size in the graph
    hidden = weights[0].size(0) // gates
    lstm, one_step, sequence = c0 is not None, h0.dim() == 2, x.shape[:-1]
    saved = 4 if gates > 1 else 1
    keep_c = c_sequence or training and not one_step
    has_projection = kernels.projected_weight(weights, directions)
    return (
        x.new_empty(*sequence, directions * projected),
        x.new_empty(0) if one_step else torch.empty_like(h0, memory_format=torch.contiguous_format),
        torch.empty_like(c0, memory_format=torch.contiguous_format) if lstm else x.new_empty(0),
        x.new_empty(*sequence, directions * hidden) if lstm and keep_c else x.new_empty(0),
        x.new_empty(directions, rows, saved, hidden) if training else x.new_empty(0),
        x.new_empty(directions, rows, hidden) if training and has_projection else x.new_empty(0),
    )


def _present(t: Tensor) -> Tensor | None:
    return t if t.dim() > 1 else None


@torch.library.custom_op("fusedrnn::scan_backward", mutates_args=())
def scan_backward(
    mode: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    reset_h: Tensor | None,
    reset_c: Tensor | None,
    h_mask: Tensor | None,
    zone_h: Tensor | None,
    zone_c: Tensor | None,
    weights: list[Tensor],
    outputs: list[Tensor],
    grads: list[Tensor],
    wanted: list[bool],
) -> list[Tensor]:
    """Returns the gradients of x, h0, c0, reset_h, reset_c and the weights; those not wanted are empty.

    outputs: y, c of every step, saved, hidden. grads: of y, h_n, c_n, c of every step.
    """
    args = (x, h0, c0, batch_sizes, lengths, reset, reset_h, reset_c, h_mask, zone_h, zone_c)
    found = kernels.gradients(mode, args, weights, *map(_present, outputs), [*map(_present, grads)], wanted)
    return [x.new_empty(0) if t is None else t for t in found]


@scan_backward.register_fake
def _(mode, x, h0, c0, *args):
    reset_h, reset_c, weights, wanted = *args[3:5], args[8], args[-1]
    return [
        torch.empty_like(t, memory_format=torch.contiguous_format) if want and t is not None else x.new_empty(0)
        for t, want in zip((x, h0, c0, reset_h, reset_c, *weights), wanted, strict=True)
    ]


def gradients(
    mode: str,
    args: Sequence[Tensor | None],
    weights: Sequence[Tensor],
    outputs: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """As :func:`fusedrnn.kernels.gradients`, by the operator."""
    outputs, grads = ([args[0].new_empty(0) if t is None else t for t in given] for given in (outputs, grads))
    found = scan_backward(mode, *args, list(weights), outputs, grads, wanted)
    return [t if want else None for t, want in zip(found, wanted, strict=True)]


def _save_forward(ctx, inputs, output):
    mode, _, _, *args, weights = inputs
    y, _, _, c_steps, saved, hidden = output
    if args[1].dim() == 2:  # one step starts from h0 and c0
        y = c_steps = None
    ctx.mode = mode
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*args, *weights, y, c_steps, saved, hidden)


def _forward_backward(ctx, *grads):
    tensors = ctx.saved_tensors  # asked once: checkpointing allows no more
    args, weights, outputs = tensors[:11], tensors[11:-4], tensors[-4:]
    grads = list(grads[:4]) if args[2] is not None else [*grads[:2], None, None]  # an absent output has no gradient
    needed = ctx.needs_input_grad
    wanted = [*needed[3:6], *needed[9:11], *needed[14]]
    if torch.is_grad_enabled() or not can_take((*tensors, *grads)):  # in grad mode they shall be differentiable
        found = reference.gradients(ctx.mode, args, weights, grads, wanted)
    else:
        found = gradients(ctx.mode, args, weights, outputs, grads, wanted)
    return None, None, None, *found[:3], None, None, None, *found[3:5], None, None, None, found[5:]


scan_forward.register_autograd(_forward_backward, setup_context=_save_forward)


def _flops(mode: str, x: Sequence[int], h0: Sequence[int], weights: Sequence[Sequence[int]]) -> tuple[int, int, int]:
    """Of all products with w_ih, w_hh and w_hr in one direction, from the sizes of the tensors."""
    rows, (_, inputs), (_, projected) = math.prod(x[:-1]), *weights[:2]
    wide = weights[0][0]
    projection = kernels.projected_weight(weights, h0[0] if len(h0) == 3 else 1)
    hidden = wide // kernels.GATES[mode] if projection else 0
    return 2 * rows * wide * inputs, 2 * rows * wide * projected, 2 * rows * hidden * projected


@register_flop_formula(torch.ops.fusedrnn.scan_forward)
def _(mode, training, c_sequence, x, h0, *args, out_shape=None):
    return sum(_flops(mode, x, h0, args[-1])) * (h0[0] if len(h0) == 3 else 1)


@register_flop_formula(torch.ops.fusedrnn.scan_backward)
def _(mode, x, h0, *args, out_shape=None):
    weights, outputs, _, wanted = args[-4:]
    directions = h0[0] if len(h0) == 3 else 1
    w_ih, w_hh, w_hr = _flops(mode, x, h0, weights)
    total = directions * (w_hh + w_hr + wanted[0] * w_ih)  # gradients of the state in every step, and of x
    if len(outputs[2]) < 2:  # the gates are made again
        total += directions * (w_ih + w_hh + w_hr)
    count = len(weights) // directions
    for d in range(directions):
        own = wanted[5 + d * count : 5 + (d + 1) * count]
        total += own[0] * w_ih + own[1] * w_hh + own[-1] * w_hr
    return total
