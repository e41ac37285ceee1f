"""Cells written in Python, and their kernels: trace, differentiate, choose what to save, print, compile."""

from .build import CellBuildError, load
from .definition import Cell, cell
from .emit import Generated
from .groups import CellError
from .norms import layer_norm, rms_norm

__all__ = ["Cell", "CellBuildError", "CellError", "Generated", "cell", "layer_norm", "load", "rms_norm"]
