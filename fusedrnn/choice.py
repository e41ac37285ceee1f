"""Who computes a call: kernels of this package, torch.nn's own forward(), or the reference.

torch.nn serves plain calls, with nothing that it does not know, where there are no kernels, and on a GPU where cuDNN's
estimate is lower.
"""

from __future__ import annotations

import functools
import os
import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .backends import extension

OLDEST_GPU = (8, 0)  # compute capability that the CUDA kernels need, kOldestCapability of csrc/cuda/plan.h
CUDNN_STEPS = 65_535  # the most that it takes


def has_kernels(x: Tensor) -> bool:
    """Are there kernels for the device and dtype of x?"""
    if extension._C is None or x.dtype not in extension.DTYPES:
        return False
    return x.is_cpu or x.is_meta or (x.is_cuda and bool(extension._C.cuda_version) and _is_new_enough(x.device.index))


@extension.constant_in_graphs
@functools.cache
def _is_new_enough(gpu: int) -> bool:
    major, minor = torch.cuda.get_device_capability(gpu)
    if (major, minor) >= OLDEST_GPU:
        return True
    warnings.warn(  # once: the answer is kept
        f"fusedrnn has no kernels for GPU {gpu}, of compute capability {major}.{minor}: they need 8.0. There torch.nn "
        "serves what it can do, and the reference in PyTorch all else, slowly",
        stacklevel=2,
    )
    return False


def torch_serves(x: Tensor) -> bool:
    """Is a plain call with this input one for torch.nn, because there are no kernels?"""
    return not has_kernels(x) and _torch_can_take(x)


def _torch_can_take(x: Tensor) -> bool:
    """torch.nn fails with transforms, forward-mode derivatives and empty sequences, and computes with what is not there
    on the meta device."""
    return (
        x.numel() > 0
        and not x.is_meta
        and not torch.compiler.is_compiling()
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
    )


class Layers(NamedTuple):
    """A module's layers, as estimates need them."""

    mode: str
    hidden: int
    projected: int
    layers: int
    directions: int


class Call(NamedTuple):
    """A plain call of them."""

    steps: int
    rows: int
    features: int
    packed: bool
    differentiable: bool


def cudnn_serves(layers: Layers, call: Call, x: Tensor) -> bool:
    """Is a plain call on a GPU one for torch.nn, because cuDNN's estimate is lower?

    Never where cuDNN cannot do what the kernels do: with deterministic algorithms, or with more steps than it takes.
    Second derivatives of a call, which it cannot do either, are not known in advance: where
    ``torch.backends.cudnn.flags(enabled=False)`` rules it out, as its error message advises, the kernels run. Nor do
    estimates matter with FUSEDRNN_CUDNN=0, for never, and 1, for wherever it can.
    """
    if not x.is_cuda or not has_kernels(x) or not _torch_can_take(x):
        return False
    wish = cudnn_wish()
    if wish == "0" or not torch.backends.cudnn.enabled or torch.are_deterministic_algorithms_enabled():
        return False
    if call.steps > CUDNN_STEPS or torch._C._get_tracing_state() is not None:
        return False
    if wish == "1":
        return True
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    ours, cudnn = estimates(layers, call, dtype, torch.backends.cudnn.allow_tf32, gpu(x.device.index))
    return cudnn < ours


def cudnn_wish() -> str:
    """What FUSEDRNN_CUDNN asks for: 0, 1, or "" for the lower estimate."""
    wish = os.environ.get("FUSEDRNN_CUDNN", "")
    if wish not in ("", "0", "1"):
        raise ValueError(f"FUSEDRNN_CUDNN must be 0 or 1, got {wish!r}")
    return wish


@functools.lru_cache(1024)
def estimates(
    layers: Layers, call: Call, dtype: torch.dtype, tf32: bool, device: tuple[int, ...]
) -> tuple[float, float]:
    """Microseconds of a call's scans by the kernels and by cuDNN; device: the numbers of Device in csrc/cuda/plan.h."""
    kind = (dtype.itemsize, dtype == torch.float16, dtype == torch.float32 and tf32)
    return extension._C.compare_with_cudnn(tuple(layers), tuple(call), kind, device)


@functools.cache
def gpu(index: int) -> tuple[int, ...]:
    return tuple(extension._C.gpu(index))
