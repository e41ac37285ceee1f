"""The kernels as operators of the dispatcher: one opaque node a layer for whoever looks at the graph of a model.

They take the same arguments as the eager path of :mod:`fusedrnn.scan`. Operators have no optional results: what is
absent is empty. Derivatives of higher order are the reference's where autograd can see it; in a compiled graph they are
an error.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import kernels, reference


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
    directions, projected = h0.size(0) if h0.dim() == 3 else 1, h0.size(-1)
    gates, rows = kernels.GATES[mode], math.prod(x.shape[:-1])  # Size.numel() would fix the size in the graph
    hidden = weights[0].size(0) // gates
    lstm, one_step, sequence = c0 is not None, h0.dim() == 2, x.shape[:-1]
    saved = 4 if gates > 1 else 1
    has_projection = kernels.projected_weight(weights, directions)
    return (
        x.new_empty(*sequence, directions * projected),
        x.new_empty(0) if one_step else torch.empty_like(h0, memory_format=torch.contiguous_format),
        torch.empty_like(c0, memory_format=torch.contiguous_format) if lstm else x.new_empty(0),
        x.new_empty(*sequence, directions * hidden) if lstm and (training or c_sequence) else x.new_empty(0),
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


def _save_forward(ctx, inputs, output):
    mode, _, _, *args, weights = inputs
    y, _, _, c_steps, saved, hidden = output
    ctx.mode = mode
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*args, *weights, y, c_steps, saved, hidden)


def _forward_backward(ctx, *grads):
    tensors = ctx.saved_tensors  # asked once: checkpointing allows no more
    args, weights, outputs = tensors[:11], tensors[11:-4], tensors[-4:]
    grads = list(grads[:4]) if args[2] is not None else [*grads[:2], None, None]  # an absent output has no gradient
    needed = ctx.needs_input_grad
    wanted = [*needed[3:6], *needed[9:11], *needed[14]]
    if torch.is_grad_enabled():  # the gradients shall be differentiable themselves
        found = reference.gradients(ctx.mode, args, weights, grads, wanted)
    else:
        grads = [args[0].new_empty(0) if t is None else t for t in grads]
        found = scan_backward(ctx.mode, *args, list(weights), list(outputs), grads, wanted)
        found = [t if want else None for t, want in zip(found, wanted, strict=True)]
    return None, None, None, *found[:3], None, None, None, *found[3:5], None, None, None, found[5:]


scan_forward.register_autograd(_forward_backward, setup_context=_save_forward)
