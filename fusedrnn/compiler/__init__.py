"""Cells written in Python, and their kernels: trace, differentiate, choose what to save, print, compile."""

from .definition import Cell, cell
from .groups import CellError

__all__ = ["Cell", "CellError", "cell"]
