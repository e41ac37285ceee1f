"""The kernels as operators of the dispatcher: one opaque node a layer for whoever looks at the graph of a model.

``libfusedrnn`` defines them, for the CPU and CUDA, with the fields of :class:`fusedrnn.inputs.ScanInputs` as arguments;
here they get what graphs in Python need. Operators have no optional results: what is absent is empty and has one
dimension. Derivatives of higher order are the reference's where autograd can see it; in a compiled graph they are an
error.
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

from ..inputs import ScanInputs
from . import extension


def can_take(tensors: Iterable[Tensor]) -> bool:
    """Can operators of ours take these tensors as they are? If not, only PyTorch's own can.

    A wrapper with ``__torch_dispatch__`` knows those at best, and forward-mode derivatives and function transforms have
    formulas for no others.
    """
    return (
        forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and all(isinstance(t, (FakeTensor, FunctionalTensor)) or extension.is_dispatched(t) for t in tensors)
    )


def scan_forward(cell: str, save: bool, sequences: bool, inputs: ScanInputs) -> list[Tensor]:
    """Returns each state after every step and after the last, saved and hidden: 2 S + 2 tensors."""
    return torch.ops.fusedrnn.scan_forward.default(cell, save, sequences, *_arguments(inputs))


def _arguments(inputs: ScanInputs) -> ScanInputs:
    """The fields as operators take them: no zoneout of a state is an empty tensor."""
    if not inputs.zones:
        return inputs
    return inputs._replace(zones=[inputs.x.new_empty(0) if z is None else z for z in inputs.zones])


def _inputs(fields) -> ScanInputs:
    """The inverse of :func:`_arguments`."""
    inputs = ScanInputs(*fields)
    return inputs._replace(zones=[None if z is None or z.dim() == 1 else z for z in inputs.zones])


def _check_devices(inputs: ScanInputs) -> None:
    zones = [z for z in inputs.zones if z is not None]
    for z in zones:
        if not z.dim() and z.device.type != "cpu":
            raise ValueError(f"fusedrnn: zoneout of one number must be on the CPU, got {z.device}")
    masks = [t for t in (inputs.lengths, inputs.reset, inputs.h_mask) if t is not None] + [z for z in zones if z.dim()]
    for t in (*inputs.differentiable(), *masks):
        if t.device != inputs.x.device:
            raise ValueError(f"fusedrnn: all tensors of a layer must be on {inputs.x.device}, got one on {t.device}")


def _fake_forward(cell, save, sequences, *fields):
    inputs = _inputs(fields)
    _check_devices(inputs)
    x, traits = inputs.x, extension.cell_traits(cell)
    directions, hidden = inputs.directions, inputs.w_hh[0].size(0) // traits.gates
    sequence, rows = x.shape[:-1], math.prod(x.shape[:-1])  # Size.numel() would fix the size in the graph
    absent = x.new_empty(0)
    keep_steps = sequences or save and not inputs.one_step
    widths = [directions * s.size(-1) for s in inputs.initial]
    steps = [x.new_empty(*sequence, w) if keep_steps or k == 0 else absent for k, w in enumerate(widths)]
    last = [_empty_like(s) for s in inputs.initial]
    if inputs.one_step:
        last[0] = absent
    saved = x.new_empty(directions, rows, traits.saved, hidden) if save else absent
    return [*steps, *last, saved, x.new_empty(directions, rows, hidden) if save and inputs.w_hr else absent]


def _empty_like(t: Tensor) -> Tensor:
    return torch.empty_like(t, memory_format=torch.contiguous_format)


def _fake_backward(cell, *arguments):
    inputs, wanted = _inputs(arguments[:-3]), arguments[-1]
    absent = inputs.x.new_empty(0)
    return [_empty_like(t) if want else absent for t, want in zip(inputs.differentiable(), wanted, strict=True)]


def gradients(
    cell: str,
    inputs: ScanInputs,
    outputs: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of the differentiable inputs where wanted, by the operator; outputs and grads as it orders them."""
    absent = inputs.x.new_empty(0)
    outputs, grads = ([absent if t is None else t for t in given] for given in (outputs, grads))
    made = torch.ops.fusedrnn.scan_backward.default(cell, *_arguments(inputs), outputs, grads, wanted)
    return [t if want else None for t, want in zip(made, wanted, strict=True)]


def _flops(shapes: ScanInputs) -> tuple[int, int, int]:
    """Of all products with w_ih, w_hh and w_hr in one direction, from the shapes of the tensors."""
    rows, (wide, projected) = math.prod(shapes.x[:-1]), shapes.w_hh[0]
    inputs = shapes.w_ih[0][1] if shapes.w_ih else 0
    hidden = shapes.w_hr[0][1] if shapes.w_hr else 0
    return 2 * rows * wide * inputs, 2 * rows * wide * projected, 2 * rows * hidden * projected


def _flops_forward(cell, save, sequences, *fields, out_shape=None):
    shapes = ScanInputs(*fields)
    return sum(_flops(shapes)) * shapes.directions


def _flops_backward(cell, *arguments, out_shape=None):
    *fields, outputs, _, wanted = arguments
    shapes = ScanInputs(*fields)
    wanted = shapes.with_differentiable(wanted)
    of_input, recurrent, projection = _flops(shapes)
    total = recurrent + projection + wanted.x * of_input  # gradients of h in every step, and of x
    if len(outputs[-2]) < 2:  # the gates are made again
        total += of_input + recurrent + projection
    total *= shapes.directions
    return total + sum(wanted.w_ih) * of_input + sum(wanted.w_hh) * recurrent + sum(wanted.w_hr) * projection


if extension._C is not None:
    torch.library.register_fake("fusedrnn::scan_forward", _fake_forward)
    torch.library.register_fake("fusedrnn::scan_backward", _fake_backward)
    register_flop_formula(torch.ops.fusedrnn.scan_forward)(_flops_forward)
    register_flop_formula(torch.ops.fusedrnn.scan_backward)(_flops_backward)
