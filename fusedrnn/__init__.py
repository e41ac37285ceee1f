"""Recurrent layers for PyTorch on compiled kernels: drop-in for nn.LSTM, nn.GRU, nn.RNN and their cells."""

from .backends.extension import empty_cache, library_path
from .batch import episode_starts
from .cells import FusedGRUCell, FusedLSTMCell, FusedRNNCell
from .convert import convert, to_torch
from .modules import FusedGRU, FusedLSTM, FusedRNN

__version__ = "0.2.0"

__all__ = [
    "FusedGRU",
    "FusedGRUCell",
    "FusedLSTM",
    "FusedLSTMCell",
    "FusedRNN",
    "FusedRNNCell",
    "convert",
    "empty_cache",
    "episode_starts",
    "library_path",
    "to_torch",
]
