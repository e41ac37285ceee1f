"""The kernels as operators of the dispatcher: one opaque node a layer for whoever looks at the graph of a model.

``libfusedrnn`` defines them, for the CPU and CUDA, with the fields of :class:`fusedrnn.inputs.ScanInputs` as arguments;
here they get what graphs in Python need. What they return is a list of what is present. In a list of arguments, what is
absent is empty and has one dimension. Derivatives of higher order are the reference's where autograd can see it; in a
compiled graph they are an error.
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


def scan_forward(cell: str, save: bool, sequences: bool, inputs: ScanInputs) -> tuple[list[Tensor | None], ...]:
    """Returns each state after every step and after the last; None where there is none."""
    present = iter(torch.ops.fusedrnn.scan_forward.default(cell, save, sequences, *_arguments(inputs)))
    others = sequences or save and not inputs.one_step
    steps = [next(present) if others or k == 0 else None for k in range(len(inputs.initial))]
    return steps, [None if inputs.one_step and k == 0 else next(present) for k in range(len(inputs.initial))]


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
    directions, hidden = inputs.directions, inputs.w_hr[0].size(1) if inputs.w_hr else inputs.initial[0].size(-1)
    sequence, rows = x.shape[:-1], math.prod(x.shape[:-1])  # Size.numel() would fix the size in the graph
    keep_steps = sequences or save and not inputs.one_step
    widths = [directions * s.size(-1) for s in inputs.initial]
    outputs = [x.new_empty(*sequence, w) for k, w in enumerate(widths) if keep_steps or k == 0]
    outputs += [_empty_like(s) for s in inputs.initial[inputs.one_step :]]
    if save:
        outputs.append(x.new_empty(directions, rows, traits.saved, hidden))
        outputs += [x.new_empty(directions, rows, hidden)] if inputs.w_hr else []
    return outputs


def _empty_like(t: Tensor) -> Tensor:
    return torch.empty_like(t, memory_format=torch.contiguous_format)


def _fake_backward(cell, *arguments):
    inputs, wanted = _inputs(arguments[:-3]), arguments[-1]
    return [_empty_like(t) for t, want in zip(inputs.differentiable(), wanted, strict=True) if want]


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
    made = iter(torch.ops.fusedrnn.scan_backward.default(cell, *_arguments(inputs), outputs, grads, wanted))
    return [next(made) if want else None for want in wanted]


def _flops(shapes: ScanInputs) -> tuple[int, int, int]:
    """Of all products with w_ih, w_hh and w_hr in one direction, from the shapes of the tensors."""
    rows = math.prod(shapes.x[:-1])
    sizes = (kind[0] if kind else (0, 0) for kind in (shapes.w_ih, shapes.w_hh, shapes.w_hr))
    return tuple(2 * rows * math.prod(size) for size in sizes)


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
