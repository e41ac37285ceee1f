"""Recurrent and RecurrentCell: layers and single steps of a cell that the user writes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.types import Device

from . import stack
from .backends import compiled
from .batch import (
    CallOptions,
    check_step_input,
    describe,
    fits,
    make_batch,
    named_inputs,
    take_step_inputs,
)
from .compiler import Cell
from .inputs import ScanInputs
from .noise import Noise, check_option
from .scan import scan

State = Tensor | tuple[Tensor, ...]


class _Parameters(nn.Module):
    """The parameters of some layers of a cell, by the names of torch.nn."""

    def __init__(self, cell: Cell, input_size: int, hidden_size: int, bias: bool, heads: int):
        super().__init__()
        if not isinstance(cell, Cell):
            raise TypeError(f"cell must be made by fusedrnn.cell, got {describe(cell)}")
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("heads", heads)):
            if not isinstance(size, int) or isinstance(size, bool):
                raise TypeError(f"{name} should be of type int, got: {type(size).__name__}")
        if hidden_size <= 0:
            raise ValueError("hidden_size must be greater than zero")
        _check_heads(heads, hidden_size, cell)
        self.cell, self.input_size, self.hidden_size, self.bias = cell, input_size, hidden_size, bias
        self.heads = heads
        self._name = compiled.register(cell)
        G, B = len(cell.gates), len(cell.recurrent)
        self._weights = ["weight_ih", *["weight_hh"] * (B > 0)]
        self._weights += ["bias_ih", *["bias_hh"] * (B > 0)] if bias else []
        self._vectors = [*cell.parameters, *cell.gate_parameters]
        kinds = [{"weight": "w", "bias": "b"}[name[:-3]] + name[-3:] for name in self._weights]
        self._kinds = stack.places([*kinds, *["vectors"] * (cell.vectors > 0)])
        H = hidden_size
        self._sizes = {"weight_hh": (B * H, H // heads), "bias_ih": (G * H,), "bias_hh": (B * H,)}
        self._sizes |= dict.fromkeys(cell.parameters, (H,)) | dict.fromkeys(cell.gate_parameters, (G * H,))

    def _add_parameters(self, suffix: str, inputs: int, factory: dict[str, Any]) -> None:
        sizes = self._sizes | {"weight_ih": (len(self.cell.gates) * self.hidden_size, inputs)}
        for name in (*self._weights, *self._vectors):
            if hasattr(self, name + suffix):
                raise ValueError(
                    f"{self.cell.name}: a parameter of {type(self).__name__} cannot be called {name + suffix!r}, which "
                    "is an attribute of every one"
                )
            setattr(self, name + suffix, nn.Parameter(torch.empty(sizes[name], **factory)))

    def reset_parameters(self) -> None:
        """Draws weights from U(-1/sqrt(H), 1/sqrt(H)), and gives the cell's vectors their initial values."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name, parameter in self.named_parameters(recurse=False):
            vector = name if name in self._vectors else name.rpartition("_l")[0]
            initial = self.cell.initial_vectors.get(vector)
            with torch.no_grad():
                if initial is None:
                    parameter.uniform_(-bound, bound)
                elif callable(initial):
                    parameter.copy_(initial(tuple(parameter.shape)))
                else:
                    parameter.fill_(initial)

    def _tensors(self, suffix: str) -> list[Tensor]:
        """The weights of one layer and direction in the order of their kinds."""
        weights = [getattr(self, name + suffix) for name in self._weights]
        if self.heads > 1:
            weights[1] = _block_diagonal(weights[1], self.heads)
        if self._vectors:
            parts = [getattr(self, name + suffix).view(-1, self.hidden_size) for name in self._vectors]
            weights.append(torch.cat(parts) if len(parts) > 1 else parts[0])
        return weights

    def _initial(self, hx: State | None, x: Tensor, sizes: tuple[int, ...], w: Tensor) -> list[Tensor]:
        """The states that hx gives, or those that the cell begins with."""
        names = self.cell.states
        if hx is None:
            return [_filled(x, sizes, value) for value in self.cell.initial]
        given = hx if len(names) > 1 else (hx,)
        if not isinstance(given, (tuple, list)) or len(given) != len(names):
            form = "a tensor" if len(names) == 1 else f"a tuple ({', '.join(names)})"
            raise ValueError(f"hx must be {form} for {self.cell.name}, got {describe(hx)}")
        for name, s in zip(names, given, strict=True):
            if not fits(s, sizes, w):
                raise RuntimeError(
                    f"Expected hidden state {name} of size {sizes}, {w.dtype} on {w.device}, got {describe(s)}"
                )
        return list(given)

    def _check(self, input: Tensor, w: Tensor) -> None:
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.size(-1)}"
            )
        if not fits(input, input.shape, w):
            raise ValueError(f"input must be {w.dtype} on {w.device} like the parameters, got {describe(input)}")

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._name = compiled.register(self.cell)

    @property
    def backend(self) -> str:
        """``"compiled"`` where the cell has kernels for these parameters, which are made if need be, else
        ``"reference"``, as of every cell with a norm."""
        w = next(self.parameters())
        return "compiled" if compiled.is_compiled(self._name, w.dtype, w.device.type) else "reference"

    def __prepare_scriptable__(self):
        raise ValueError(f"TorchScript cannot compile cells of fusedrnn.cell, here {self.cell.name}: use torch.export")


def _filled(x: Tensor, sizes: tuple[int, ...], value) -> Tensor:
    if not callable(value):
        return x.new_full(sizes, value) if value else x.new_zeros(sizes)
    return torch.as_tensor(value(sizes)).to(x).expand(sizes)


def _check_heads(heads: int, hidden_size: int, cell: Cell) -> None:
    if heads <= 0:
        raise ValueError("heads must be greater than zero")
    if hidden_size % heads:
        raise ValueError(f"heads must divide hidden_size, got {heads} heads of {hidden_size} units")
    if heads > 1 and not cell.recurrent:
        raise ValueError(f"heads divide weight_hh, which {cell.name} does not have: no gate is recurrent")


def _block_diagonal(w: Tensor, heads: int) -> Tensor:
    """[B*H, H] from rows (gate, head, unit) over the units of their own head, [B*H, H / heads]: zeros elsewhere."""
    units = w.size(1)
    blocks = w.view(-1, heads, units, units).permute(0, 2, 3, 1)
    return torch.diag_embed(blocks, dim1=1, dim2=3).view(-1, heads * units)


class Recurrent(_Parameters):
    r"""A recurrent network of one or more layers of a cell that :func:`fusedrnn.cell` made.

    A layer above the first takes the first state of the one below as its input.

    Args:
        cell: see :func:`fusedrnn.cell`. Values that its function captures are fixed at construction.
        input_size: features I of the input.
        hidden_size: features H of each state.
        num_layers: layers L.
        bias: False leaves out ``bias_ih`` and ``bias_hh``.
        batch_first: True: sequences are (N, T, features); states remain (L*D, N, H).
        dropout: probability with which an element between two layers is zeroed, in training only.
        bidirectional: True: a second direction runs from the end; D = 2, and both outputs stand side by side.
        device, dtype: of the parameters.
        recurrent_dropout, weight_drop, recompute: as for :class:`fusedrnn.FusedLSTM`.
        zoneout: probabilities by the names of states, as ``zoneout_h`` of :class:`fusedrnn.FusedLSTM`.
        heads: a divisor of H: the recurrent part of a unit sees the units of its own head only, H / heads consecutive
            ones. Kernels multiply by the whole block-diagonal matrix, zeros included, so heads save parameters, not
            time.

    Inputs: input, hx
        - **input** (T, N, I), (N, T, I) if ``batch_first``, (T, I) unbatched, a PackedSequence or a nested tensor, as
          for :class:`fusedrnn.FusedLSTM`.
        - **hx** (L*D, N, H) or (L*D, H) unbatched of each state, as a tuple in the order of the cell's states; of one
          state the tensor alone. By default what the cell begins with, zeros if it does not say.

    Options of the call, by keyword only:
        - **inputs**: what the cell declares as inputs, by name: (T, N) in the form of the input ((N, T) if
          ``batch_first``, (T) unbatched, packed: a PackedSequence or the data of one), or with H features for
          unit_inputs. All layers and directions get the same.
        - **lengths**, **reset**, **reset_state**, **return_state_sequence**: as for :class:`fusedrnn.FusedLSTM`. The
          third result is the last layer's second state after every step, a tuple of all but the first where there are
          more than two, None where there is one.

    Outputs: output, state
        - **output** (T, N, D*H), in the form of the input: the first state of the last layer after every step.
        - **state** after the last step, as hx.

    Attributes:
        weight_ih_l[k]: (G*H, I), above the first layer (G*H, D*H), in the order of the cell's gates.
        weight_hh_l[k]: (B*H, H / heads), of the B recurrent gates in that order; absent for B = 0. The H rows of a gate
            are those of its first head, then of the next.
        bias_ih_l[k]: (G*H); absent if ``bias=False``.
        bias_hh_l[k]: (B*H); absent if ``bias=False`` or B = 0.
        [name]_l[k]: (H) of each of the cell's parameters, (G*H) of each of its gate_parameters.

    Names of the second direction end in ``_reverse``. Initial values are drawn from
    :math:`\mathcal{U}(-1/\sqrt{H}, 1/\sqrt{H})`, but for vectors whose initial value the cell says.

    Example::

        >>> layer = fusedrnn.Recurrent(fusedrnn.zoo.peephole_lstm, 10, 20, num_layers=2)
        >>> output, (h_n, c_n) = layer(torch.randn(5, 3, 10))
    """

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        recurrent_dropout: float = 0.0,
        zoneout: Mapping[str, float] | None = None,
        weight_drop: float = 0.0,
        recompute: bool = False,
        heads: int = 1,
    ) -> None:
        super().__init__(cell, input_size, hidden_size, bias, heads)
        if num_layers <= 0:
            raise ValueError("num_layers must be greater than zero")
        self.num_layers, self.batch_first, self.bidirectional = num_layers, batch_first, bidirectional
        self.zoneout = _zoneout({} if zoneout is None else zoneout, cell)
        options = {"dropout": dropout, "recurrent_dropout": recurrent_dropout, "weight_drop": weight_drop}
        for name, value in (options | {"recompute": recompute}).items():
            check_option(name, value)
            setattr(self, name, value)
        directions = 2 if bidirectional else 1
        self._suffixes = [f"_l{k}{way}" for k in range(num_layers) for way in ("", "_reverse")[:directions]]
        for i, suffix in enumerate(self._suffixes):
            width = input_size if i < directions else hidden_size * directions
            self._add_parameters(suffix, width, {"device": device, "dtype": dtype})
        self.reset_parameters()

    def extra_repr(self) -> str:
        text = f"{self.cell.name}, {self.input_size}, {self.hidden_size}"
        plain = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        plain |= {"recurrent_dropout": 0.0, "weight_drop": 0.0, "recompute": False, "zoneout": {}, "heads": 1}
        return text + "".join(f", {k}={getattr(self, k)}" for k, value in plain.items() if getattr(self, k) != value)

    # No bare * before the options: the older exporter of torch.onnx passes defaults by position.
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        inputs: Mapping[str, Tensor | PackedSequence] | None = None,
        lengths: Tensor | None = None,
        reset: Tensor | PackedSequence | None = None,
        reset_state: State | None = None,
        return_state_sequence: bool | str = False,
    ):
        weights = [w for suffix in self._suffixes for w in self._tensors(suffix)]
        batch = make_batch(input, self.batch_first)
        if batch is None:
            raise ValueError(f"{type(self).__name__}: Expected input to be 2D, 3D or packed, got {describe(input)}")
        self._check(batch.x, weights[0])
        count = len(self._suffixes)
        size = (count, batch.rows, self.hidden_size) if batch.batched else (count, self.hidden_size)
        initial = [batch.take_state(s) for s in self._initial(hx, batch.x, size, weights[0])]
        dropout = self.dropout if self.training and self.num_layers > 1 else 0.0
        options = stack.Options(dropout, batch.batch_sizes, noise=self._noise(), recompute=self.recompute)
        asked = CallOptions(lengths, reset, reset_state, return_state_sequence)
        options = asked.add_to(options, batch, initial, self.num_layers)
        options = options._replace(step_inputs=take_step_inputs(self.cell, inputs, batch, self.hidden_size))
        y, last, steps = stack.run(self._name, batch.x, initial, (weights, self._kinds), self.num_layers, options)
        output, state = batch.give_sequence(y), tuple(map(batch.give_state, last))
        state = state if len(state) > 1 else state[0]
        if not return_state_sequence:
            return output, state
        sequences = [tuple(map(batch.give_sequence, of_layer)) for of_layer in steps]
        if return_state_sequence == "all":
            return output, state, sequences
        others = sequences[-1][1:]
        return output, state, others if len(others) > 1 else (*others, None)[0]

    def _noise(self) -> Noise | None:
        if not (self.recurrent_dropout or self.weight_drop or self.zoneout):
            return None
        zoneout = [self.zoneout.get(name, 0.0) for name in self.cell.states]
        recurrent_dropout = self.recurrent_dropout if self.cell.recurrent else 0.0
        return Noise(recurrent_dropout, zoneout, self.weight_drop, self.training)

    def flatten_parameters(self) -> None:
        """Does nothing, as in :class:`fusedrnn.FusedLSTM`."""


def _zoneout(rates: Mapping[str, float], cell: Cell) -> dict[str, float]:
    if not isinstance(rates, Mapping):
        raise TypeError(f"zoneout must be a dictionary of probabilities by the names of states, got {rates!r}")
    for name, rate in rates.items():
        if name not in cell.states:
            raise ValueError(f"zoneout: {cell.name} has no state {name!r}, only {', '.join(cell.states)}")
        check_option(f"zoneout of {name}", rate)
    return {name: rate for name, rate in rates.items() if rate}


class RecurrentCell(_Parameters):
    r"""One step of a cell that :func:`fusedrnn.cell` made.

    Args:
        cell, input_size, hidden_size, bias, device, dtype, heads: as for :class:`Recurrent`.

    Inputs: input, hx
        - **input** (N, I) or (I).
        - **hx** (N, H) or (H) of each state, as a tuple; of one state the tensor alone.
        - **inputs**, by keyword only: by name: (N) or (), of unit_inputs (N, H) or (H).

    Outputs: the states after the step, as hx.

    Attributes: as those of :class:`Recurrent`, without ``_l[k]``.
    """

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        heads: int = 1,
    ) -> None:
        super().__init__(cell, input_size, hidden_size, bias, heads)
        self._add_parameters("", input_size, {"device": device, "dtype": dtype})
        self.reset_parameters()

    def extra_repr(self) -> str:
        text = f"{self.cell.name}, {self.input_size}, {self.hidden_size}" + ("" if self.bias else ", bias=False")
        return text + (f", heads={self.heads}" if self.heads > 1 else "")

    def forward(self, input: Tensor, hx: State | None = None, inputs: Mapping[str, Tensor] | None = None) -> State:
        weights = self._tensors("")
        if not isinstance(input, Tensor) or input.dim() not in (1, 2):
            raise ValueError(f"RecurrentCell: Expected input to be 1D or 2D, got {describe(input)}")
        self._check(input, weights[0])
        initial = self._initial(hx, input, (*input.shape[:-1], self.hidden_size), weights[0])
        given, per_unit = named_inputs(self.cell, inputs)
        for t, unit in zip(given, per_unit, strict=True):
            check_step_input(t, [*input.shape[:-1]] + [self.hidden_size] * unit, input)
        batched = input.dim() == 2
        if not batched:
            input, initial, given = (
                input.unsqueeze(0),
                [s.unsqueeze(0) for s in initial],
                [t.unsqueeze(0) for t in given],
            )
        count, places = self._kinds
        parts = [() if i is None else weights[i : i + 1] for i in places]
        steps, _ = scan(self._name, ScanInputs(input, initial, *parts, step_inputs=given), sequences=True)
        steps = steps if batched else [t.squeeze(0) for t in steps]
        return steps[0] if len(steps) == 1 else tuple(steps)
