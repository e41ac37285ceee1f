"""Whole models from torch.nn's recurrent modules to the fused ones, and back."""

from __future__ import annotations

import warnings

from torch import nn

from .cells import FusedGRUCell, FusedLSTMCell, FusedRNNCell
from .modules import FusedGRU, FusedLSTM, FusedRNN
from .twin import rates

FUSED = {
    nn.LSTM: FusedLSTM,
    nn.GRU: FusedGRU,
    nn.RNN: FusedRNN,
    nn.LSTMCell: FusedLSTMCell,
    nn.GRUCell: FusedGRUCell,
    nn.RNNCell: FusedRNNCell,
}
TORCH = {fused: plain for plain, fused in FUSED.items()}


def convert(model: nn.Module) -> nn.Module:
    """Replaces every nn.LSTM, nn.GRU, nn.RNN and their cells inside ``model``, in place, and returns the model.

    The modules hold the same attributes, so each one only changes its class: the very same object keeps its
    Parameters, hooks, buffers, training flag and whoever else refers to it (optimizers, shared instances). The model
    itself may be such a module. A subclass of one of them may rely on anything and stays as it is, with a warning.

    Example::

        >>> model = torch.nn.Sequential(torch.nn.Embedding(50, 8), torch.nn.GRU(8, 16))
        >>> fusedrnn.convert(model)
        Sequential(
          (0): Embedding(50, 8)
          (1): FusedGRU(8, 16)
        )
        >>> fusedrnn.to_torch(model)[1]
        GRU(8, 16)
    """
    return _swap(model, FUSED)


def to_torch(model: nn.Module) -> nn.Module:
    """Undoes :func:`convert`: every fused module inside ``model`` becomes its counterpart of torch.nn, in place.

    A regularised cell is refused before anything is changed, as torch.nn would leave its masks out without a word: set
    its rates to 0 first. ``recompute`` and ``forget_bias`` change no result; torch.nn ignores them.
    """
    for name, module in model.named_modules():
        twin = TORCH.get(type(module))
        if twin and (used := rates(module)):
            raise ValueError(
                f"{name or 'the model itself'} has {used}, which torch.nn.{twin.__name__} cannot do; set it to 0 first"
            )
    _swap(model, TORCH)
    for module in model.modules():
        if type(module) in (nn.LSTM, nn.GRU, nn.RNN):
            module.flatten_parameters()  # cuDNN requires the weights in one block
    return model


def _swap(model: nn.Module, twins: dict[type, type]) -> nn.Module:
    for name, module in model.named_modules():
        twin = twins.get(type(module))
        if twin is not None:
            module.__class__ = twin
        elif isinstance(module, tuple(twins)):
            warnings.warn(
                f"{name or 'the model itself'} stays {type(module).__name__}: "
                "only the classes themselves are converted, not their subclasses",
                stacklevel=3,
            )
    return model
