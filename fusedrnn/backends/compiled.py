"""Kernels of cells that users write: made when a cell first meets a dtype and device."""

from __future__ import annotations

import threading
import warnings

import torch

from .. import compiler
from . import extension, reference

NAMES: dict[str, compiler.Generated] = {}  # generated kernels, by the name under which they are registered
_answers: dict[tuple[str, torch.dtype, str], bool] = {}  # of is_compiled
_compiling = threading.Lock()


def register(cell: compiler.Cell) -> str:
    """The name of the cell for :func:`fusedrnn.scan.scan`: another one where its kernels would be others."""
    generated = cell.generate()
    NAMES.setdefault(generated.key, generated)
    reference.WRITTEN.setdefault(generated.key, cell.of_vectors)
    return generated.key


def has_norms(name: str) -> bool:
    """Does this cell, written by a user, have a norm over a row, which no kernel computes?"""
    return not NAMES[name].struct


@extension.constant_in_graphs
def may_have_kernels(name: str, dtype: torch.dtype, device: str) -> bool:
    """False where there are certainly none of this cell, be it a built-in one."""
    return name not in NAMES or is_compiled(name, dtype, device)


def is_compiled(name: str, dtype: torch.dtype, device: str) -> bool:
    """Are there kernels of this cell? They are compiled now, where they can be."""
    asked = name, dtype, device
    if asked not in _answers:
        with _compiling:  # other threads wait, so that a failure is reported once
            if asked not in _answers:
                _answers[asked] = _compile(*asked)
    return _answers[asked]


def _compile(name: str, dtype: torch.dtype, device: str) -> bool:
    if extension._C is None or device != "cpu" or dtype not in extension.DTYPES or has_norms(name):
        return False
    try:
        compiler.load(NAMES[name].text, NAMES[name].struct, dtype)
    except compiler.CellBuildError as error:
        warnings.warn(f"fusedrnn runs cell {name} without kernels, correct but slow: {error}", stacklevel=3)
        return False
    return True
