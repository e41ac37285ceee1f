"""Recurrent layers for PyTorch on compiled kernels: drop-in for nn.LSTM, nn.GRU, nn.RNN and their cells."""

import importlib

from .backends.extension import empty_cache, library_path
from .batch import episode_starts
from .cells import FusedGRUCell, FusedLSTMCell, FusedRNNCell
from .compiler import CellError, cell, layer_norm, rms_norm
from .convert import convert, to_torch
from .inference import Stream, optimize_for_inference
from .modules import FusedGRU, FusedLSTM, FusedRNN
from .recurrent import Recurrent, RecurrentCell


def __getattr__(name: str):
    if name != "zoo":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.zoo")  # on demand: every cell of it is traced


__version__ = "0.2.0"

__all__ = [
    "CellError",
    "FusedGRU",
    "FusedGRUCell",
    "FusedLSTM",
    "FusedLSTMCell",
    "FusedRNN",
    "FusedRNNCell",
    "Recurrent",
    "RecurrentCell",
    "Stream",
    "cell",
    "convert",
    "empty_cache",
    "episode_starts",
    "layer_norm",
    "library_path",
    "optimize_for_inference",
    "rms_norm",
    "to_torch",
    "zoo",
]
