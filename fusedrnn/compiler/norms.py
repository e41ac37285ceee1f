"""Normalisation over a row, inside a cell's function: what the operations of one unit cannot express."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .groups import Gates, GroupError

Numbers = TypeVar("Numbers", Gates, Tensor)
EPSILON = 1e-5
NORMS = {
    "layer_norm": lambda v: F.layer_norm(v, v.shape[-1:], eps=EPSILON),
    "rms_norm": lambda v: F.rms_norm(v, v.shape[-1:], eps=EPSILON),
}
# While a function is traced, what makes the results of a norm's name and its tensors.
recorder: ContextVar[Callable[[str, Sequence[Tensor]], list[Tensor]] | None] = ContextVar("recorder", default=None)


def layer_norm(v: Numbers) -> Numbers:
    """Inside the function of a :func:`cell`: each row minus its mean, divided by its standard deviation.

    There is neither gain nor shift: multiply by what the cell declares as ``gate_parameters`` or ``parameters``. A
    cell with a norm has no kernels yet: its function runs, step by step, and ``Recurrent.backend`` is "reference".

    Args:
        v: gates in a group, such as ``x``, ``r`` or ``x + r``, normalised jointly over all G*H numbers of a row; or the
            numbers of one gate or state, over the H of a row. 1e-5 is added to the variance.

    Source: Ba et al., Layer normalization, 2016.
    """
    return _normalised("layer_norm", v)


def rms_norm(v: Numbers) -> Numbers:
    """Inside the function of a :func:`cell`: each row divided by the root of the mean of its squares.

    Args:
        v: as for :func:`layer_norm`. 1e-5 is added to the mean.

    Source: Zhang & Sennrich, Root mean square layer normalization, 2019.
    """
    return _normalised("rms_norm", v)


def _normalised(name: str, v: Numbers) -> Numbers:
    if not isinstance(v, (Gates, Tensor)) or isinstance(v, Gates) and not len(v):
        what = "a group without gates" if isinstance(v, Gates) else type(v).__name__
        raise GroupError(f"{name} takes gates, such as x, r and x + r, or a state, not {what}")
    record = None if torch.compiler.is_compiling() else recorder.get()
    if isinstance(v, Gates):
        if record is not None:
            return v._with(record(name, list(v)))
        return v._with(NORMS[name](torch.cat(list(v), -1) if v._whole is None else v._whole))
    return NORMS[name](v) if record is None else record(name, [v])[0]
