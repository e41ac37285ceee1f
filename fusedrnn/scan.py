"""The scan of one recurrent layer: the only door to the compiled kernels.

Eager calls go through an :class:`torch.autograd.Function`; a compiled or exported graph gets the same two kernels as
opaque operators. Whatever the kernels do not do (derivatives of higher order, function transforms, forward-mode
derivatives, other devices and dtypes) is done by :mod:`fusedrnn.reference`.
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import reference

GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
DTYPES = {torch.float32, torch.float64, torch.bfloat16, torch.float16}


def _load_extension():
    """Returns the compiled extension and None, or None and the reason why it cannot be used."""
    try:
        from . import _C
    except ImportError as error:
        return None, f"it cannot be imported ({error})"
    if _C.torch_version != torch.__version__:
        return None, f"it was built with torch {_C.torch_version}, but torch {torch.__version__} is installed"
    return _C, None


_C, extension_error = _load_extension()
if extension_error:
    warnings.warn(
        f"fusedrnn runs without its compiled extension, correct but slow: {extension_error}. "
        "To build it: pip install --no-build-isolation --force-reinstall --no-deps fusedrnn",
        stacklevel=2,
    )


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
    c_sequence: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Runs one layer, all steps and both directions. The modules have checked the arguments.

    Args:
        mode: ``"LSTM"``, ``"GRU"``, ``"RNN_TANH"`` or ``"RNN_RELU"``, as in :attr:`torch.nn.RNNBase.mode`.
        x: padded input [T, N, I], or packed rows [R, I] together with ``batch_sizes``, or one step [N, I]: then
            neither states nor results have dimensions of steps and directions.
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
        c_sequence: also return the cell state after every step.

    Returns:
        y [T, N, D*P] (packed: [R, D*P]), h_n [D, N, P], c_n [D, N, H] or None, and c of every step [T, N, D*H] or None.
    """
    if torch._C._is_any_autocast_enabled():
        x, h0, c0, reset_h, reset_c, *weights = _autocast(x, h0, c0, reset_h, reset_c, *weights)
    args = (x, h0, c0, batch_sizes, lengths, reset, reset_h, reset_c)
    if _use_reference(x):
        *outputs, c_steps = reference.scan(mode, x, h0, c0, weights, *args[3:])
        return *outputs, c_steps if c_sequence else None
    training = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, h0, c0, reset_h, reset_c, *weights)
    )
    if _use_operators(x):
        y, h_n, c_n, c_steps, _, _ = scan_forward(mode, training, c_sequence, *args, list(weights))
        return y, h_n, c_n if c0 is not None else None, c_steps if c_sequence and c0 is not None else None
    if not training:
        return _C.scan_forward(mode, False, c_sequence, *args, weights)[:4]
    return _Scan.apply(mode, True, c_sequence, *args, *weights)


def _autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors in the dtype that autocast asks for on the first one's device; float64 and integers stay."""
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors]


def _use_reference(x: Tensor) -> bool:
    """Is this a case that only plain PyTorch can do?"""
    if _C is None or x.dtype not in DTYPES or not (x.is_cpu or x.is_meta or (x.is_cuda and _C.cuda_version)):
        return True
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def _use_operators(x: Tensor) -> bool:
    """Is somebody watching who must see operators of the dispatcher (compiler, tracer, fake or meta tensors)?"""
    return (
        torch.compiler.is_compiling()
        or x.is_meta
        or type(x) not in (Tensor, torch.nn.Parameter)
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
    )


# The two kernels as operators: the same arguments as autograd's function below, but no optional results.


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
    weights: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns y, h_n, c_n, c of every step, and what the backward pass needs; absent ones are empty."""
    args = (x, h0, c0, batch_sizes, lengths, reset, reset_h, reset_c)
    outputs = _C.scan_forward(mode, training, c_sequence, *args, weights)
    return tuple(x.new_empty(0) if t is None else t for t in outputs)


@scan_forward.register_fake
def _(mode, training, c_sequence, x, h0, c0, batch_sizes, lengths, reset, reset_h, reset_c, weights):
    directions, projected = h0.size(0) if h0.dim() == 3 else 1, h0.size(-1)
    gates, rows = GATES[mode], math.prod(x.shape[:-1])  # Size.numel() would fix the size in the graph
    hidden = weights[0].size(0) // gates
    lstm, sequence = c0 is not None, x.shape[:-1]
    saved = 4 if gates > 1 else 1
    return (
        x.new_empty(*sequence, directions * projected),
        torch.empty_like(h0, memory_format=torch.contiguous_format),
        torch.empty_like(c0, memory_format=torch.contiguous_format) if lstm else x.new_empty(0),
        x.new_empty(*sequence, directions * hidden) if lstm and (training or c_sequence) else x.new_empty(0),
        x.new_empty(directions, rows, saved, hidden) if training else x.new_empty(0),
        x.new_empty(directions, rows, hidden) if training and projected_weight(weights, directions) else x.new_empty(0),
    )


def projected_weight(weights: Sequence[Tensor], directions: int) -> bool:
    """Does the layer have w_hr?"""
    return len(weights) // directions % 2 == 1


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
    weights: list[Tensor],
    outputs: list[Tensor],
    grads: list[Tensor | None],
    wanted: list[bool],
) -> list[Tensor]:
    """Returns the gradients of x, h0, c0, reset_h, reset_c and the weights; those not wanted are empty."""
    args = (x, h0, c0, batch_sizes, lengths, reset, reset_h, reset_c)
    outputs = [t if t.numel() else None for t in outputs]
    with _rnn_precision(x):
        found = _gradients(mode, args, weights, outputs, grads, wanted)
    return [x.new_empty(0) if t is None else t for t in found]


@scan_backward.register_fake
def _(mode, x, h0, c0, batch_sizes, lengths, reset, reset_h, reset_c, weights, outputs, grads, wanted):
    inputs = (x, h0, c0, reset_h, reset_c, *weights)
    return [
        torch.empty_like(t, memory_format=torch.contiguous_format) if want and t is not None else x.new_empty(0)
        for t, want in zip(inputs, wanted, strict=True)
    ]


def _rnn_precision(x: Tensor):
    """GEMMs of float32 on CUDA obey torch.backends.cudnn.rnn.fp32_precision, as those of torch.nn's layers do."""
    if not x.is_cuda or x.dtype != torch.float32:
        return contextlib.nullcontext()
    wanted = torch.backends.cudnn.rnn.fp32_precision
    if torch.backends.cuda.matmul.fp32_precision == wanted:
        return contextlib.nullcontext()
    return _matmul_precision(wanted)


@contextlib.contextmanager
def _matmul_precision(wanted: str):
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = wanted
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _gradients(mode, args, weights, outputs, grads, wanted) -> list[Tensor | None]:
    """Gradients of x, h0, c0, reset_h, reset_c and the weights, each None where not wanted.

    The kernel emits the gate gradients of every step; every sum over steps is one GEMM here.
    """
    x, h0 = args[:2]
    y, _, _, c_steps, saved, hidden = outputs
    dgates, h_prev, dh_steps, dh0, dc0, dreset_h, dreset_c = _C.scan_backward(
        mode, *args, weights, y, c_steps, saved, *grads[:4]
    )
    dtype, (directions, rows) = x.dtype, dgates.shape[:2]
    count, gates = len(weights) // directions, GATES[mode]
    width = weights[0].size(0)  # G*H
    lead, last = width - width // gates, dgates[0, 0].numel() if rows else width
    if x.is_cpu and dtype.itemsize == 2 and not _multiplies_halves():
        x, y, h0, dgates = x.float(), y.float(), h0.float(), dgates.float()
    h0 = h0.reshape(directions, *h0.shape[-2:])
    x, y = x.reshape(rows, x.size(-1)), y.reshape(rows, directions, h0.size(-1))
    dx, dweights = None, []
    for d in range(directions):
        planes = dgates[d].flatten(1)  # [R, Q*H]
        dgates_x = planes[:, :width]
        # dr is the same as dx but for its last gate, which is the last plane
        parts = [dgates_x] if last == width else [planes[:, :lead], planes[:, last - width // gates :]]
        want = iter(wanted[5 + d * count : 5 + (d + 1) * count])
        if wanted[0]:
            w_ih = weights[d * count].to(x.dtype)
            dx = dgates_x @ w_ih if dx is None else dx.addmm_(dgates_x, w_ih)
        dweights.append(dgates_x.t() @ x if next(want) else None)
        dweights.append(
            _concatenate(_times_state_before(part, h_prev, y, h0, d) for part in parts) if next(want) else None
        )
        if count >= 4:
            db_ih = dgates_x.sum(0)
            dweights.append(db_ih if next(want) else None)
            db_hh = db_ih.clone() if last == width else _concatenate(part.sum(0) for part in parts)
            dweights.append(db_hh if next(want) else None)
        if projected_weight(weights, directions):
            dweights.append(dh_steps[d].to(x.dtype).t() @ hidden[d].to(x.dtype) if next(want) else None)
    dstates = (dh0, dc0, dreset_h, dreset_c)
    dx = dx.view(args[0].shape) if dx is not None else None
    found = [dx, *(t if want else None for t, want in zip(dstates, wanted[1:5], strict=True)), *dweights]
    return [None if t is None else t.to(dtype) for t in found]


@functools.cache
def _multiplies_halves() -> bool:
    """Does this processor multiply 16-bit floats faster than float32? Those of x86 do with AMX; with AVX-512 alone, two
    cores reach 171 GFLOP/s in bfloat16 and 335 in float32.
    """
    return torch.cpu._is_amx_tile_supported() or not torch.cpu._is_avx2_supported()


def _times_state_before(dr: Tensor, h_prev: Tensor | None, y: Tensor, h0: Tensor, d: int) -> Tensor:
    """dr^T [.., R] times the hidden state before each step: h_prev [D, R, P], or else y [R, D, P] one step earlier."""
    if h_prev is not None:
        return dr.t() @ h_prev[d].to(dr.dtype)
    rows = dr.size(0)
    n = min(h0.size(1), rows)
    if d == 0:
        first, later, earlier = dr[:n], dr[n:], y[: rows - n, d]
    else:
        first, later, earlier = dr[rows - n :], dr[: rows - n], y[n:, d]
    return (first.t() @ h0[d, :n]).addmm_(later.t(), earlier)


def _concatenate(parts) -> Tensor:
    first, *rest = parts
    return torch.cat([first, *rest]) if rest else first


def _keep(ctx, mode, args, weights, outputs):
    """Keeps for the backward pass what it needs: of the function below, and of the operator."""
    y, _, _, c_steps, saved, hidden = outputs
    ctx.mode = mode
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*args, *weights, y, c_steps, saved, hidden)


def _kept(ctx):
    tensors = ctx.saved_tensors
    y, c_steps, saved, hidden = tensors[-4:]
    return tensors[:8], list(tensors[8:-4]), [y, None, None, c_steps, saved, hidden]


def _spread(found):
    """Gradients of the inputs in their order: mode, training, c_sequence, x, h0, c0, three masks, reset_h, reset_c."""
    return None, None, None, *found[:3], None, None, None, *found[3:5]


class _Scan(torch.autograd.Function):
    """The differentiable eager path: mode, training and c_sequence, then all tensors, the weights last."""

    @staticmethod
    def forward(ctx, mode, training, c_sequence, *tensors):
        args, weights = tensors[:8], tensors[8:]
        outputs = _C.scan_forward(mode, training, c_sequence, *args, weights)
        _keep(ctx, mode, args, weights, outputs)
        y, h_n, c_n, c_steps, _, _ = outputs
        return y, h_n, c_n, c_steps if c_sequence else None

    @staticmethod
    def backward(ctx, *grads):
        args, weights, outputs = _kept(ctx)
        needed = ctx.needs_input_grad
        wanted = [*needed[3:6], *needed[9:11], *needed[11:]]
        if torch.is_grad_enabled():  # the gradients shall be differentiable themselves
            found = _reference_gradients(ctx.mode, args, weights, grads, wanted)
        else:
            with _rnn_precision(args[0]):
                found = _gradients(ctx.mode, args, weights, outputs, grads, wanted)
        return *_spread(found), *found[5:]


def _reference_gradients(mode, args, weights, grads, wanted) -> list[Tensor | None]:
    """As _gradients, but by autograd through the reference, hence differentiable to any order."""
    x, h0, c0, batch_sizes, lengths, reset, reset_h, reset_c = args
    # fresh views: an input that is given twice still gets one gradient for each of its places
    inputs = [None if t is None else t.view_as(t) for t in (x, h0, c0, reset_h, reset_c, *weights)]
    x, h0, c0, reset_h, reset_c = inputs[:5]
    outputs = reference.scan(mode, x, h0, c0, inputs[5:], batch_sizes, lengths, reset, reset_h, reset_c)
    both = zip(outputs, grads, strict=False)
    pairs = [(t, g) for t, g in both if t is not None and g is not None and t.requires_grad]
    chosen = [t for t, want in zip(inputs, wanted, strict=True) if want]
    if not pairs or not chosen:
        return [None] * len(inputs)
    outputs, grads = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outputs, chosen, grads, create_graph=True, allow_unused=True))
    return [next(found) if want else None for want in wanted]


def _operator_keep(ctx, inputs, output):
    mode, _, c_sequence, *args, weights = inputs
    _keep(ctx, mode, args, weights, output)
    ctx.mark_non_differentiable(*output[4:], *(() if c_sequence else output[3:4]))


def _operator_backward(ctx, *grads):
    args, weights, outputs = _kept(ctx)
    outputs = [args[0].new_empty(0) if t is None else t for t in outputs]
    grads = grads[:4] if args[2] is not None else (*grads[:2], None, None)  # an absent output has no gradient
    needed = ctx.needs_input_grad
    wanted = [*needed[3:6], *needed[9:11], *needed[11]]
    found = scan_backward(ctx.mode, *args, weights, outputs, list(grads), wanted)
    found = [t if want else None for t, want in zip(found, wanted, strict=True)]
    return *_spread(found), found[5:]


scan_forward.register_autograd(_operator_backward, setup_context=_operator_keep)
