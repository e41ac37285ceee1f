"""The scan of one recurrent layer: selects the backend.

Eager calls go to the compiled kernels through a ``torch::autograd::Function`` of the extension, which first checks
every tensor: its memory is read only if it is dense and stores its own values. A compiled or exported graph gets the
kernels as opaque operators, as do modes, tracers, fake and functional tensors, subclasses with ``__torch_function__``
and tensors whose bits negate or conjugate. Everything else (derivatives of higher order, function transforms,
forward-mode derivatives, other devices and dtypes, tensors whose values only their own operations can read) runs in
:mod:`fusedrnn.backends.reference`, with operations of PyTorch, as in torch.nn. What is better left to
torch.nn itself does not come here: see :mod:`fusedrnn.choice`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .backends import compiled, extension, onnx, operators, reference
from .choice import has_kernels
from .inputs import ScanInputs

# The CPU kernels vectorise over the units of a row, PyTorch's operations over rows. With at most this many units and at
# least this many rows, the latter are faster.
FEW_UNITS = {"LSTM": 1, "GRU": 2, "RNN_TANH": 3, "RNN_RELU": 3}
MOST_FEW_UNITS, MANY_ROWS = max(FEW_UNITS.values()), 1000

Outputs = tuple[list[Tensor | None], list[Tensor | None]]


def scan(cell: str, inputs: ScanInputs, sequences: bool = False, recompute: bool = False) -> Outputs:
    """Runs one layer, all steps and both directions. The modules have checked the arguments.

    Args:
        cell: ``"LSTM"``, ``"GRU"``, ``"RNN_TANH"`` or ``"RNN_RELU"``, as :attr:`torch.nn.RNNBase.mode`.
        inputs: see :class:`fusedrnn.inputs.ScanInputs`.

            - ``lengths``: row n ends after ``lengths[n]`` steps: later outputs are zero, its states are frozen, and the
              reverse direction starts at its end.
            - ``reset``: where true, the states become ``reset_states`` before this step; the reverse direction starts
              anew on the other side.
            - ``h_mask``: h is multiplied by it on its way into w_hh, in every step.
            - ``zones``: a mask is true where the state keeps its value in a step. Of a number, which is on the CPU, the
              state becomes that fraction of its old value and the rest of the new.
        sequences: also return the states besides h after every step.
        recompute: keep only the states for the backward pass, which makes the gates again by one GEMM.

    Returns:
        Each state after every step [T, N, D*width] (packed: [R, D*width]), None where not asked for, the first being y;
        and each state after the last step [D, N, width], that of h not of one step: y is it.
    """
    h_dtype = None
    if torch._C._is_any_autocast_enabled():
        inputs, h_dtype = _autocast(cell, inputs)
    compiling = torch.compiler.is_compiling()
    traced = compiling or torch._C._get_tracing_state() is not None
    if not traced and inputs.initial[0].shape[-1] <= MOST_FEW_UNITS and _suits_torch(cell, sequences, inputs):
        return reference.torch_layer(cell, inputs)
    states = len(inputs.initial)
    kernels = _may_have_kernels(cell, inputs.x)
    outputs = extension.scan(cell, sequences, recompute, inputs) if kernels and not compiling else None
    if outputs is not None:
        steps, last = outputs[:states], outputs[states:]
    elif not kernels or _use_reference(inputs.x, inputs.tensors(), compiling):
        _refuse_packed(inputs, "work on plain tensors on the CPU, without transforms of torch.func")
        if onnx.is_exporting():
            onnx.check(cell)
        steps, last = reference.scan(cell, inputs)
    elif onnx.is_exporting():
        _refuse_packed(inputs, "cannot be exported to ONNX: export the model that was packed")
        steps, last = onnx.layer(cell, inputs, sequences)
    else:
        steps, last = _run_operator(cell, inputs, sequences, recompute)
    if h_dtype is not None:
        steps = [steps[0].to(h_dtype), *steps[1:]]
        last = [None if last[0] is None else last[0].to(h_dtype), *last[1:]]
    return steps, last


def scan_layers(cell: str, layers: list[ScanInputs]) -> list[Outputs] | None:
    """Runs layers of which each but the first takes the output of the one below as its x, side by side on several
    threads. None, and nothing is done, where that is not possible or not faster."""
    first = layers[0]
    if torch.compiler.is_compiling() or torch._C._is_any_autocast_enabled() or not _may_have_kernels(cell, first.x):
        return None
    made, states = extension.scan_layers(cell, layers), len(first.initial)
    return None if made is None else [(outputs[:states], outputs[states:]) for outputs in made]


def _refuse_packed(inputs: ScanInputs, why: str) -> None:
    if inputs.packed:
        raise RuntimeError(f"packed weights {why}")


def _may_have_kernels(cell: str, x: Tensor) -> bool:
    """False where there are certainly none: of a cell that a user wrote, or of an old GPU."""
    if x.is_cuda and not has_kernels(x):
        return False
    return compiled.may_have_kernels(cell, x.dtype, x.device.type)


def _run_operator(cell: str, inputs: ScanInputs, sequences: bool, recompute: bool) -> Outputs:
    if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
        training = recompute = True  # in either grad mode: the graph may be run in the other one
    else:
        training = torch.is_grad_enabled() and any(t.requires_grad for t in inputs.differentiable())
    save, keep_steps = training and not recompute, sequences or training and recompute
    return operators.scan_forward(cell, save, keep_steps, inputs)


def _autocast(cell: str, inputs: ScanInputs) -> tuple[ScanInputs, torch.dtype | None]:
    """Converts the tensors, except float64 and integers, to the dtype in which the layer runs under autocast; also
    returns the dtype of y and h_n if that is another one.

    Results have the dtypes of torch.nn's. That is autocast's own dtype, but on the CPU only products have it, and all
    else goes by type promotion: a GRU is in the dtype of h0 if that is wider, an LSTM in that of c0, and only the h
    that a projection makes remains narrow. What comes out wide is wide from the beginning. A padded LSTM is all narrow
    without a projection: there it is one operation of oneDNN's.
    """
    device = inputs.x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return inputs, None
    dtype = narrow = torch.get_autocast_dtype(device)
    state = {"LSTM": inputs.initial[-1], "GRU": inputs.initial[0]}.get(cell)
    step_by_step = cell == "GRU" or inputs.batch_sizes is not None or bool(inputs.w_hr) or inputs.one_step
    if device == "cpu" and state is not None and step_by_step:
        dtype = torch.promote_types(narrow, state.dtype)
    cast = Tensor.to if torch.compiler.is_compiling() else extension.cached_cast
    wide = {dtype, torch.float64}

    def convert(t):
        return t if not t.is_floating_point() or t.dtype in wide else cast(t, dtype)

    inputs = inputs.with_differentiable([convert(t) for t in inputs.differentiable()])
    if inputs.h_mask is not None:
        inputs = inputs._replace(h_mask=convert(inputs.h_mask))
    return inputs, narrow if inputs.w_hr and dtype is not narrow else None


def _suits_torch(cell: str, sequences: bool, inputs: ScanInputs) -> bool:
    """Are PyTorch's operations, which vectorise over rows, faster for a layer of so few units and so many rows?"""
    x, h0 = inputs.x, inputs.initial[0]
    return (
        cell in FEW_UNITS
        and h0.shape[-2] >= MANY_ROWS
        and h0.shape[-1] <= FEW_UNITS[cell]
        and not inputs.w_hr
        and not inputs.packed
        and x.is_cpu
        and x.dtype in ((torch.float64,) if cell == "LSTM" else (torch.float32, torch.float64))
        and not sequences
        and not inputs.has_options()
        and extension._C is not None
        and operators.can_take(inputs.tensors())
    )


def _use_reference(x: Tensor, tensors: Iterable[Tensor], compiling: bool = False) -> bool:
    """Is this a case that only plain PyTorch supports?"""
    return not has_kernels(x) or (not compiling and not operators.can_take(tensors))


def _gradients(cell, inputs, outputs, grads, wanted):
    """The backward pass of the eager path where the extension leaves it to Python."""
    inputs = ScanInputs(*inputs)
    present = (t for t in (*inputs.tensors(), *outputs, *grads) if t is not None)
    if torch.is_grad_enabled() or _use_reference(inputs.x, present):
        return reference.gradients(cell, inputs, grads, wanted)
    return operators.gradients(cell, inputs, outputs, grads, wanted)


extension.set_gradients(_gradients)
