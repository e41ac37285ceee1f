"""One recurrent layer in plain PyTorch: the oracle, the fallback and the double backward of :mod:`fusedrnn.scan`.

Written to be read beside the paper, one step at a time. Every derivative, of any order, is autograd's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..inputs import WEIGHTS, ScanInputs

# A cell gets the input part x [N, G*H] and the recurrent part r [N, B*H] of its gates, and the states; it returns the
# new ones. The first is h. A cell that a user wrote is made of its vectors [U, H], and gets inputs of the step by name.


def lstm_cell(x: Tensor, r: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Hochreiter & Schmidhuber (1997) with the forget gate of Gers et al. (2000)."""
    i, f, g, o = (x + r).chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_cell(x: Tensor, r: Tensor, h: Tensor) -> tuple[Tensor]:
    """Cho et al. (2014), with the reset gate after the recurrent product as in cuDNN and torch.nn.GRU."""
    x_r, x_z, x_n = x.chunk(3, dim=-1)
    r_r, r_z, r_n = r.chunk(3, dim=-1)
    reset, update = torch.sigmoid(x_r + r_r), torch.sigmoid(x_z + r_z)
    n = torch.tanh(x_n + reset * r_n)
    return (n + update * (h - n),)


def rnn_tanh_cell(x: Tensor, r: Tensor, h: Tensor) -> tuple[Tensor]:
    """Elman (1990)."""
    return (torch.tanh(x + r),)


def rnn_relu_cell(x: Tensor, r: Tensor, h: Tensor) -> tuple[Tensor]:
    """Elman's network with rectified units."""
    return (torch.relu(x + r),)


CELLS = {"LSTM": lstm_cell, "GRU": gru_cell, "RNN_TANH": rnn_tanh_cell, "RNN_RELU": rnn_relu_cell}
WRITTEN: dict[str, Callable] = {}  # by users: functions of vectors


def _step(cell: str, vectors: Tensor | None) -> Callable:
    return CELLS[cell] if cell in CELLS else WRITTEN[cell](vectors)


def scan(cell: str, inputs: ScanInputs) -> tuple[list[Tensor], list[Tensor]]:
    """As :func:`fusedrnn.scan.scan` with ``sequences``."""
    if inputs.one_step:
        return _one_step(cell, inputs)
    runs = [_Direction(cell, inputs, d).run() for d in range(inputs.directions)]
    shape = inputs.x.shape[:-1]
    steps, last = (list(zip(*kind, strict=True)) for kind in zip(*runs, strict=True))
    return [torch.cat(s, dim=-1).unflatten(0, shape) for s in steps], [torch.stack(s) for s in last]


def _one_step(cell, inputs):
    w_ih, w_hh, b_ih, b_hh, w_hr, vectors = _weights(inputs, 0)
    h0 = inputs.initial[0]
    gates_x = inputs.x if w_ih is None else F.linear(inputs.x, w_ih, b_ih)
    r = None if w_hh is None else F.linear(h0, w_hh, b_hh)
    h, *others = _step(cell, vectors)(gates_x, r, *inputs.initial, **_given(inputs.step_inputs))
    h = h if w_hr is None else F.linear(h, w_hr)
    states = [s.clone() for s in (h, *others)]  # the caller may change them in place: a cell may return what it got
    return states, states


def _weights(inputs: ScanInputs, d: int) -> list[Tensor | None]:
    """The weights of one direction, not packed; absent ones are None."""
    return [kind[d] if kind else None for kind in (getattr(inputs, name) for name in WEIGHTS[:-1])]


def _given(step_inputs: Sequence[Tensor]) -> dict:
    """What some cells get beside gates and states."""
    return {"inputs": step_inputs} if step_inputs else {}


def _of_each_step(inputs: ScanInputs, sizes: Sequence[int]) -> list[tuple[Tensor, ...]]:
    """The inputs beside x."""
    parts = [t.flatten(0, inputs.x.dim() - 2).split(sizes) for t in inputs.step_inputs]
    return list(zip(*parts, strict=True)) or [()] * len(sizes)


class _Direction:
    """One direction of a layer. Packed: x is [R, I], and step t uses the next sizes[t] rows."""

    def __init__(self, cell: str, inputs: ScanInputs, d: int):
        w_ih, self.w_hh, b_ih, self.b_hh, self.w_hr, vectors = _weights(inputs, d)
        self.cell, self.lengths, self.backwards = _step(cell, vectors), inputs.lengths, d == 1
        gates_x = inputs.x.chunk(inputs.directions, -1)[d] if w_ih is None else F.linear(inputs.x, w_ih, b_ih)
        rows = inputs.initial[0].size(1)
        self.sizes = [rows] * inputs.x.size(0) if inputs.batch_sizes is None else inputs.batch_sizes.tolist()
        self.starts = [0]
        for size in self.sizes:
            self.starts.append(self.starts[-1] + size)
        self.gates_x = gates_x.flatten(0, -2).split(self.sizes)  # a slice's gradient is as large as all steps
        self.step_inputs = _of_each_step(inputs, self.sizes)
        self.reset = None if inputs.reset is None else inputs.reset.flatten()
        self.initial = [s[d] for s in inputs.initial]
        self.reset_states = [s[d] for s in inputs.reset_states] or [torch.zeros_like(s) for s in self.initial]
        self.h_mask = None if inputs.h_mask is None else inputs.h_mask[d]
        zones = inputs.zones or [None] * len(self.initial)
        self.zones = [
            z if z is None or not z.dim() else z.reshape(-1, inputs.directions, z.size(-1) // inputs.directions)[:, d]
            for z in zones
        ]

    def run(self) -> tuple[list[Tensor], list[Tensor]]:
        """The states after all steps, [R, width], and after the last, [N, width]."""
        states, count = self.initial, len(self.sizes)
        steps = [[None] * count for _ in states]
        for t in reversed(range(count)) if self.backwards else range(count):
            n = self.sizes[t]
            before = [s if n == s.size(0) else s[:n] for s in states]
            after = self.step(t, before)
            for k, (new, old, all_steps) in enumerate(zip(after, before, steps, strict=True)):
                all_steps[t] = new
                if self.lengths is not None:  # a finished row is frozen, and its outputs are zero
                    alive = (t < self.lengths[:n]).unsqueeze(1)
                    all_steps[t] = new.where(alive, 0)
                    after[k] = torch.where(alive, new, old)
            states = [
                new if n == old.size(0) else torch.cat([new, old[n:]]) for new, old in zip(after, states, strict=True)
            ]
        steps = [torch.cat(s) if s else h.new_zeros(0, h.size(1)) for s, h in zip(steps, states, strict=True)]
        return steps, [s.clone() if s is s0 else s for s, s0 in zip(states, self.initial, strict=True)]

    def step(self, t: int, states: list[Tensor]) -> list[Tensor]:
        n, begin = self.sizes[t], self.starts[t]
        mask = None if self.reset is None else self.reset_before(t)
        if mask is not None:
            states = [torch.where(mask, r[:n], s) for r, s in zip(self.reset_states, states, strict=True)]
        h = states[0] if self.h_mask is None else states[0] * self.h_mask[:n]
        r = None if self.w_hh is None else F.linear(h, self.w_hh, self.b_hh)
        new = list(self.cell(self.gates_x[t], r, *states, **_given(self.step_inputs[t])))
        if self.w_hr is not None:
            new[0] = F.linear(new[0], self.w_hr)
        return [_zone_out(z, begin, s, old) for z, s, old in zip(self.zones, new, states, strict=True)]

    def reset_before(self, t: int) -> Tensor | None:
        """Mask [n, 1] of the rows whose states are replaced before step t is taken; None where no row's are.

        reset[t] stands between t - 1 and t. Going backwards it is met on the way from t to t - 1.
        """
        n, step = self.sizes[t], t + 1 if self.backwards else t
        if step == len(self.sizes):
            return None
        mask = self.reset[self.starts[step] : self.starts[step] + min(n, self.sizes[step])]
        if self.lengths is not None:
            mask = mask & (step < self.lengths[: mask.size(0)])
        return F.pad(mask, (0, n - mask.size(0))).unsqueeze(1)


def _zone_out(zone: Tensor | None, begin: int, new: Tensor, old: Tensor) -> Tensor:
    """Krueger et al. (2017): each unit keeps its old value where the mask is true; a number mixes old and new value."""
    if zone is None:
        return new
    if zone.dim():
        return torch.where(zone[begin : begin + new.size(0)], old, new)
    return new + zone * (old - new)


def torch_layer(cell: str, inputs: ScanInputs) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """The same with PyTorch's layer or cell; no projection, no option except batch_sizes, no sequences."""
    states, two = list(inputs.initial), len(inputs.initial) > 1
    weights = [t for d in range(inputs.directions) for t in _weights(inputs, d) if t is not None]
    if inputs.one_step:
        run = {"LSTM": torch.lstm_cell, "GRU": torch.gru_cell}.get(cell) or getattr(torch, cell.lower() + "_cell")
        h, *others = run(inputs.x, states, *weights) if two else [run(inputs.x, states[0], *weights)]
        return [h, *[None] * len(others)], [None, *others]
    run = {"LSTM": torch.lstm, "GRU": torch.gru}.get(cell) or getattr(torch, cell.lower())
    state = states if two else states[0]
    packed = inputs.batch_sizes is not None
    rows, rows_first = ([inputs.x, inputs.batch_sizes], []) if packed else ([inputs.x], [False])
    y, *last = run(*rows, state, weights, bool(inputs.b_ih), 1, 0.0, False, inputs.directions == 2, *rows_first)
    return [y, *[None] * (len(last) - 1)], last


def gradients(
    cell: str, inputs: ScanInputs, grads: Sequence[Tensor | None], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of the differentiable inputs where wanted, differentiable to any order in grad mode.

    grads: of each state after every step, then of each after the last; None for zeros.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        # new views: an input that is passed twice still gets one gradient for each position
        given = [t.view_as(t) for t in inputs.differentiable()]
        steps, last = scan(cell, inputs.with_differentiable(given))
    outputs = zip((*steps, *last), grads, strict=True)
    pairs = [(t, g) for t, g in outputs if g is not None and t.requires_grad]
    chosen = [t for t, want in zip(given, wanted, strict=True) if want]
    if not pairs or not chosen:
        return [None] * len(given)
    outputs, grads = zip(*pairs, strict=True)
    made = iter(torch.autograd.grad(outputs, chosen, grads, create_graph=differentiable, allow_unused=True))
    return [next(made) if want else None for want in wanted]
