"""The compiled kernels, and what PyTorch adds to them: the only door to the extension.

``args`` of a layer are always x, h0, c0, batch_sizes, lengths, reset, reset_h, reset_c, h_mask, zone_h and zone_c of
:func:`fusedrnn.scan.scan`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

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


def forward(mode: str, training: bool, c_sequence: bool, args: Sequence[Tensor | None], weights: Sequence[Tensor]):
    """Returns y, h_n, c_n, c of every step, saved, hidden: the last two only if training, c only of an LSTM, h_n not of
    one step, where y is it."""
    return _C.scan_forward(mode, training, c_sequence, args, weights)


def scan(mode: str, c_sequence: bool, recompute: bool, args: Sequence[Tensor | None], weights: Sequence[Tensor]):
    """Returns y, h_n, c_n and, where asked for, c of every step, as the outputs of one node of autograd.

    None, and nothing is done, where a tensor is not of exactly PyTorch's type, dense and holding its values itself, on
    a device and x of a dtype with kernels; where a mode, tracer, function transform or forward-mode derivative is
    active; and without the extension.
    """
    return _C.scan(mode, c_sequence, recompute, args, weights) if _C is not None else None


def is_dispatched(t: Tensor) -> bool:
    """Does the dispatcher make a tensor that the kernels can read of t, or not let it come to them?

    Not so of wrappers in Python, batches of vmap, or sparse, quantised and nested tensors.
    """
    return _C.is_dispatched(t)


def set_gradients(gradients) -> None:
    """Who makes the gradients of :func:`scan`: gradients(mode, args, weights, outputs, grads, wanted, plain), with y, c
    of every step, saved and hidden as outputs. plain: nothing would have kept :func:`scan` from reading any of them.
    """
    if _C is not None:
        _C.set_gradients(gradients)


def cached_cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """t in this dtype; a parameter's copy is kept until autocast ends, as those that autocast makes itself.

    Not under a tracer, a mode or a function transform, which must see the conversion each time.
    """
    return t.to(dtype) if _C is None or _C.is_watched() else _C.cached_cast(t, dtype)


def empty_cache() -> None:
    """Gives back to the system what CPU kernels keep from one call to the next.

    That is memory of tensors that are gone, up to 256 MiB in all, and scratch memory, up to 64 MiB a thread. Other
    Python threads that call layers give up their scratch memory at their next call. Later calls work as before; the
    first of them is slower. For memory of CUDA devices, see :func:`torch.cuda.empty_cache`.
    """
    if _C is not None:
        _C.empty_cache()


def projected_weight(weights: Sequence[Tensor], directions: int) -> bool:
    """Does the layer have w_hr?"""
    return len(weights) // directions % 2 == 1


def gradients(mode, args, weights, y, c_steps, saved, hidden, grads, wanted) -> list[Tensor | None]:
    """Gradients of x, h0, c0, reset_h, reset_c and the weights, each None where not wanted.

    Without ``saved`` the gates are made again first: from the states of all steps by one GEMM, or by another forward
    pass where an LSTM has no ``c_steps``, or where there is only one step.
    """
    with _rnn_precision(args[0]):
        if saved is None and (args[1].dim() == 2 or args[2] is not None and c_steps is None):
            y, _, _, c_steps, saved, hidden = forward(mode, True, False, args, weights)
        elif saved is None:
            saved, hidden = _rebuild(mode, args, weights, y, c_steps)
        return _C.scan_backward(mode, args, weights, (y, c_steps, saved, hidden), grads, wanted)


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


def _rebuild(mode, args, weights, y, c_steps) -> tuple[Tensor, Tensor | None]:
    """``saved`` and ``hidden`` from the states alone: all rows take one step, each from the state it had before it."""
    x, h0, c0, batch_sizes, lengths, reset, reset_h, reset_c, h_mask = args[:9]
    rows, index = _rows_before(h0, x, batch_sizes, lengths, reset)
    h = _gather(index, y, h0, reset_h)
    if h_mask is not None:
        h = h * h_mask[:, rows]
    c = _gather(index, c_steps, c0, reset_c) if c0 is not None else None
    one_step = (x.reshape(1, -1, x.size(-1)), h, c, *[None] * 8)
    return forward(mode, True, False, one_step, weights)[4:]


def _gather(index: Tensor, steps: Tensor, initial: Tensor, reset: Tensor | None) -> Tensor:
    """The state before each step, [D, R, P], from the one after each step, [R, D, P], and the two it may start from."""
    directions, _, width = initial.shape
    steps = steps.reshape(-1, directions, width)
    reset = torch.zeros_like(initial) if reset is None else reset
    return torch.stack([torch.cat([steps[:, d], initial[d], reset[d]])[index[d]] for d in range(directions)])


def _rows_before(h0, x, batch_sizes, lengths, reset) -> tuple[Tensor, list[Tensor]]:
    """The batch row n of each of the R rows, and per direction the place of the state before it.

    Places 0 .. R-1 are the states after those rows, the N behind them the initial and the last N the reset states.
    """
    N, device = h0.size(1), x.device
    sizes = torch.full((x.size(0),), N, device=device) if batch_sizes is None else batch_sizes.to(device)
    T, R = sizes.numel(), x.numel() // x.size(-1)
    ends = sizes.cumsum(0)
    t = torch.repeat_interleave(torch.arange(T, device=device), sizes, output_size=R)
    n = torch.arange(R, device=device) - (ends - sizes)[t]
    index = []
    for d in range(h0.size(0)):
        step = t + 1 if d else t - 1
        exists = (step >= 0) & (step < T)
        step = step.clamp(0, T - 1)
        exists &= n < sizes[step]
        if lengths is not None:
            exists &= step < lengths[n]
        before = torch.where(exists, (ends - sizes)[step] + n, R + n)
        if reset is not None:
            mask = reset.flatten()
            cut = exists & mask[torch.where(exists, before, 0)] if d else mask
            before = torch.where(cut, R + N + n, before)
        index.append(before)
    return n, index
