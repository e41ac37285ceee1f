"""FusedLSTMCell, FusedGRUCell and FusedRNNCell: one step, with the interface of the cells of torch.nn."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.types import Device

from . import twin
from .batch import fits
from .choice import torch_serves
from .inputs import ScanInputs
from .scan import scan

PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _weights(cell: nn.RNNCellBase) -> list[list[Tensor]]:
    """In the order of WEIGHTS, each in a list of one direction."""
    parameters = cell._parameters  # fast path: nn.Module's getattr takes four times as long
    try:
        weights = [[parameters[name]] for name in PARAMETERS]
    except KeyError:
        weights = [[getattr(cell, name)] for name in PARAMETERS]
    return weights if weights[2][0] is not None else weights[:2]


def _input_fits(cell: nn.RNNCellBase, x: Tensor, w: Tensor) -> bool:
    if fits(x, (x.shape[0], cell.input_size), w):
        return True
    if x.is_meta != w.is_meta:  # torch.nn's cells would return a result without values
        raise RuntimeError(f"Expected input and parameters on one device, got {x.device} and {w.device}")
    return False


def _step(cell: nn.RNNCellBase, mode: str, x: Tensor, states: list[Tensor | None]) -> list[Tensor] | None:
    """The states after one step; None where torch.nn shall compute them, or report an invalid argument. If the first
    state is None, all are zero."""
    if not isinstance(x, Tensor) or x.dim() not in (1, 2) or torch_serves(x):
        return None
    batched = x.dim() == 2
    if not batched:
        x, states = x.unsqueeze(0), [None if t is None else t.unsqueeze(0) for t in states]
    weights = _weights(cell)
    w, size = weights[0][0], (x.shape[0], cell.hidden_size)
    if not _input_fits(cell, x, w):
        return None
    if states[0] is None:
        states = [x.new_zeros(size)] * len(states)
    elif not all(fits(state, size, w) for state in states):
        return None
    steps, last = scan(mode, ScanInputs(x, states, *weights))
    new = [steps[0], *last[1:]]
    return new if batched else [t.squeeze(0) for t in new]


def _ask_torch(cell: nn.RNNCellBase, input, hx):
    """torch.nn's result for invalid arguments: nearly always its error."""
    leaf = twin.leaf(cell, input, hx, {})
    return cell.torch_class.forward(cell, input, hx) if leaf is None else leaf


class FusedLSTMCell(nn.RNNCellBase):
    r"""A long short-term memory cell, in place of :class:`torch.nn.LSTMCell`.

    .. math::
        i, f, o = \sigma(W_i x + b_i + W_h h + b_h), \quad g = \tanh(W_i x + b_i + W_h h + b_h) \\
        c' = f \odot c + i \odot g, \quad h' = o \odot \tanh(c')

    with each gate's own rows of the weights. To run many steps at once, see :class:`fusedrnn.FusedLSTM`.

    Args:
        input_size: features I of the input.
        hidden_size: features H of the state.
        bias: False leaves out ``bias_ih`` and ``bias_hh``.
        device, dtype: of the parameters.

    Inputs: input, (h, c)
        - **input** (N, I) or (I).
        - **h**, **c** (N, H) or (H); zeros by default.

    Outputs: h', c', each (N, H) or (H).

    Attributes:
        weight_ih: (4*H, I), in the gate order i, f, g, o.
        weight_hh: (4*H, H).
        bias_ih: (4*H).
        bias_hh: (4*H).

    Initial values are drawn from :math:`\mathcal{U}(-1/\sqrt{H}, 1/\sqrt{H})`.

    Source: Hochreiter & Schmidhuber, Long short-term memory, 1997; forget gate: Gers et al., Learning to forget, 2000.
    """

    torch_class = nn.LSTMCell
    __prepare_scriptable__ = twin.scriptable

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.RNNCellBase.__init__(self, input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        states = None
        if hx is None:
            states = _step(self, "LSTM", input, [None, None])
        elif isinstance(hx, (tuple, list)) and len(hx) == 2:
            states = _step(self, "LSTM", input, list(hx))
        return _ask_torch(self, input, hx) if states is None else tuple(states)


class FusedGRUCell(nn.RNNCellBase):
    r"""A gated recurrent unit, in place of :class:`torch.nn.GRUCell`.

    .. math::
        r, z = \sigma(W_i x + b_i + W_h h + b_h), \quad n = \tanh(W_i x + b_i + r \odot (W_h h + b_h)) \\
        h' = (1 - z) \odot n + z \odot h

    with each gate's own rows of the weights. To run many steps at once, see :class:`fusedrnn.FusedGRU`.

    Args:
        input_size: features I of the input.
        hidden_size: features H of the state.
        bias: False leaves out ``bias_ih`` and ``bias_hh``.
        device, dtype: of the parameters.

    Inputs: input, h
        - **input** (N, I) or (I).
        - **h** (N, H) or (H); zeros by default.

    Outputs: h' (N, H) or (H).

    Attributes:
        weight_ih: (3*H, I), in the gate order r, z, n.
        weight_hh: (3*H, H).
        bias_ih: (3*H).
        bias_hh: (3*H).

    Initial values are drawn from :math:`\mathcal{U}(-1/\sqrt{H}, 1/\sqrt{H})`.

    Source: Cho et al., Learning phrase representations using RNN encoder-decoder, 2014, with the reset gate behind the
    recurrent product as in :class:`torch.nn.GRUCell`.
    """

    torch_class = nn.GRUCell
    __prepare_scriptable__ = twin.scriptable

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.RNNCellBase.__init__(self, input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        states = _step(self, "GRU", input, [hx])
        return _ask_torch(self, input, hx) if states is None else states[0]


class FusedRNNCell(nn.RNNCellBase):
    r"""Elman's simple recurrent cell, in place of :class:`torch.nn.RNNCell`.

    .. math::
        h' = \tanh(W_i x + b_i + W_h h + b_h)

    To run many steps at once, see :class:`fusedrnn.FusedRNN`.

    Args:
        input_size: features I of the input.
        hidden_size: features H of the state.
        bias: False leaves out ``bias_ih`` and ``bias_hh``.
        nonlinearity: ``'tanh'`` or ``'relu'``.
        device, dtype: of the parameters.

    Inputs: input, h
        - **input** (N, I) or (I).
        - **h** (N, H) or (H); zeros by default.

    Outputs: h' (N, H) or (H).

    Attributes:
        weight_ih: (H, I).
        weight_hh: (H, H).
        bias_ih: (H).
        bias_hh: (H).

    Initial values are drawn from :math:`\mathcal{U}(-1/\sqrt{H}, 1/\sqrt{H})`.

    Source: Elman, Finding structure in time, 1990.
    """

    torch_class = nn.RNNCell
    __prepare_scriptable__ = twin.scriptable
    __constants__ = [*nn.RNNCellBase.__constants__, "nonlinearity"]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.RNNCellBase.__init__(self, input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        mode = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}.get(self.nonlinearity)
        states = _step(self, mode, input, [hx]) if mode else None
        return _ask_torch(self, input, hx) if states is None else states[0]
