"""The compiled extension; only this module imports it."""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from ..inputs import ScanInputs
from . import origin

DTYPES = {torch.float32, torch.float64, torch.bfloat16, torch.float16}


def _load_extension():
    """Returns the compiled extension and None, or None and the reason why it cannot be used."""
    try:
        module = importlib.import_module("fusedrnn._C")
    except ModuleNotFoundError:
        asked = (origin.version() or "").endswith("+nokernels")
        return None, "they were left out on request (FUSEDRNN_NO_KERNELS=1)" if asked else "they were not built"
    except ImportError as error:
        built = origin.torch_required()
        fits = built in (None, _release(torch.__version__))
        return None, f"they cannot be loaded ({error})" if fits else _other_torch(built)
    if _release(module.torch_version) != _release(torch.__version__):
        return None, _other_torch(module.torch_version)
    return module, None


def _release(version: str) -> str:
    """What must be the same: builds of one release differ in devices only, but each commit before it stands alone."""
    release, _, _ = version.partition("+")
    return release if release.replace(".", "").isdigit() else version


def _other_torch(built: str) -> str:
    return f"they were compiled for torch {built}, and torch {torch.__version__} is installed"


_C, extension_error = _load_extension()
if extension_error:
    warnings.warn(
        f"fusedrnn runs without its kernels (what torch.nn can do by torch.nn, all else slowly): {extension_error}. "
        + origin.remedy(),
        stacklevel=2,
    )


class CellTraits(NamedTuple):
    """Numbers of gates, recurrent gates, states, vectors, step inputs, saved values and gate gradients of a unit."""

    gates: int
    recurrent: int
    states: int
    vectors: int
    inputs: int
    saved: int
    grads: int


@functools.cache
def cell_traits(cell: str) -> CellTraits:
    return CellTraits(**_C.cell_traits(cell))


def scan(cell: str, sequences: bool, recompute: bool, inputs: ScanInputs) -> list[Tensor | None] | None:
    """Returns each state after every step, of all but h only if ``sequences``, then each final state, that of h not of
    one step: the outputs of one node of autograd.

    None, and nothing is done, where a tensor is not of exactly PyTorch's type, dense and holding its values itself, on
    a device and x of a dtype with kernels; where a mode, tracer, function transform or forward-mode derivative is
    active; and without the extension.
    """
    return _C.scan(cell, sequences, recompute, inputs) if _C is not None else None


def scan_layers(cell: str, layers: list[ScanInputs]) -> list[list[Tensor | None]] | None:
    """What :func:`scan` returns for each of the layers, which are one node of autograd; see csrc/torch/node.h. None as
    for :func:`scan`, and where they are better run one after the other."""
    return _C.scan_layers(cell, layers) if _C is not None else None


run_packed = None if _C is None else _C.run_packed  # see csrc/torch/packed_layers.h


def constant_in_graphs(function):
    """Marks a function whose result a compiled graph keeps as a constant.

    As torch.compiler.assume_constant_result, which would import the whole compiler.
    """
    function._dynamo_marked_constant = True
    return function


def is_dispatched(t: Tensor) -> bool:
    """Does the dispatcher make a tensor that the kernels can read of t, or not let it come to them?

    Not so of wrappers in Python, batches of vmap, or sparse, quantised and nested tensors.
    """
    return _C.is_dispatched(t)


def set_gradients(gradients) -> None:
    """Registers what differentiates :func:`scan` where its own backward pass cannot: where the gradients must be
    differentiable, or a tensor is not plain: gradients(cell, inputs, outputs, grads, wanted)."""
    if _C is not None:
        _C.set_gradients(gradients)


def cached_cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """t in this dtype; a parameter's copy is kept until autocast ends, as those that autocast makes itself.

    Not under a tracer, a mode or a function transform, which must see the conversion each time.
    """
    return t.to(dtype) if _C is None or _C.is_watched() else _C.cached_cast(t, dtype)


def empty_cache() -> None:
    """Returns to the system what CPU kernels keep from one call to the next.

    That is the memory of freed tensors, up to 256 MiB in all, and scratch memory, up to 64 MiB a thread. Other Python
    threads that call layers release their scratch memory at their next call. Later calls work as before; the first of
    them is slower. For memory of CUDA devices, see :func:`torch.cuda.empty_cache`.
    """
    if _C is not None:
        _C.empty_cache()


def library_path() -> str:
    """The library of kernels and operators, for C++ programs that run exported graphs: it needs libtorch, no Python.

    Raises:
        RuntimeError: fusedrnn is installed without its compiled extension.
    """
    if _C is None:
        raise RuntimeError(f"fusedrnn has no library: {extension_error}")
    return os.path.join(os.path.dirname(_C.__file__), "libfusedrnn.so")
