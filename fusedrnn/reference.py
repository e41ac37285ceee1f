"""One recurrent layer in plain PyTorch: the oracle, the fallback and the double backward of :mod:`fusedrnn.scan`.

Written to be read beside the paper, one step at a time. Every derivative, of any order, is autograd's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def lstm_cell(x: Tensor, r: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Hochreiter & Schmidhuber (1997) with the forget gate of Gers et al. (2000)."""
    i, f, g, o = (x + r).chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_cell(x: Tensor, r: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Cho et al. (2014), with the reset gate behind the recurrent product as in cuDNN and torch.nn.GRU."""
    x_r, x_z, x_n = x.chunk(3, dim=-1)
    r_r, r_z, r_n = r.chunk(3, dim=-1)
    reset, update = torch.sigmoid(x_r + r_r), torch.sigmoid(x_z + r_z)
    n = torch.tanh(x_n + reset * r_n)
    return n + update * (h - n), c


def rnn_tanh_cell(x: Tensor, r: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Elman (1990)."""
    return torch.tanh(x + r), c


def rnn_relu_cell(x: Tensor, r: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Elman's network with rectified units."""
    return torch.relu(x + r), c


CELLS = {"LSTM": lstm_cell, "GRU": gru_cell, "RNN_TANH": rnn_tanh_cell, "RNN_RELU": rnn_relu_cell}


def split_weights(weights: list[Tensor], directions: int) -> list[tuple[Tensor | None, ...]]:
    """Groups the flat weights of a layer by direction as ``(w_ih, w_hh, b_ih, b_hh, w_hr)``; absent ones are None."""
    count = len(weights) // directions
    groups = [weights[d * count : (d + 1) * count] for d in range(directions)]
    biases, projected = count >= 4, count in (3, 5)
    return [
        (w[0], w[1], w[2] if biases else None, w[3] if biases else None, w[-1] if projected else None) for w in groups
    ]


def scan(
    mode: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reset_h: Tensor | None = None,
    reset_c: Tensor | None = None,
    h_mask: Tensor | None = None,
    zone_h: Tensor | None = None,
    zone_c: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Same arguments and results as :func:`fusedrnn.scan.scan`."""
    if h0.dim() == 2:
        return _one_step(mode, x, h0, c0, weights)
    directions, rows = h0.shape[:2]
    sizes = [rows] * x.size(0) if batch_sizes is None else batch_sizes.tolist()
    packed_reset = reset.flatten() if reset is not None else None
    states = [[None] * directions if s is None else s.unbind() for s in (h0, c0, reset_h, reset_c, h_mask)]
    zones = [
        z.reshape(-1, directions, z.size(-1) // directions).unbind(1) if z is not None and z.dim() else [z] * directions
        for z in (zone_h, zone_c)
    ]
    runs = [
        _run(mode, x, w, sizes, lengths, packed_reset, *own, backwards=d == 1)
        for d, (w, *own) in enumerate(zip(split_weights(weights, directions), *states, *zones, strict=True))
    ]
    y, h_n, c_n, c_sequence = zip(*runs, strict=True)
    shape = x.shape[:-1]
    lstm = c0 is not None
    return (
        torch.cat(y, dim=-1).unflatten(0, shape),
        torch.stack(h_n),
        torch.stack(c_n) if lstm else None,
        torch.cat(c_sequence, dim=-1).unflatten(0, shape) if lstm else None,
    )


def _one_step(mode, x, h0, c0, weights):
    ((w_ih, w_hh, b_ih, b_hh, w_hr),) = split_weights(weights, 1)
    h, c = CELLS[mode](F.linear(x, w_ih, b_ih), F.linear(h0, w_hh, b_hh), h0, c0)
    h = h.clone() if w_hr is None else F.linear(h, w_hr)  # what autograd saved stays when the caller changes h in place
    return h, h, c, c


def _run(
    mode, x, weights, sizes, lengths, reset, h0, c0, reset_h, reset_c, h_mask, zone_h, zone_c, backwards
):  # fmt: skip
    """One direction. Packed, x is [R, I] and step t owns the next sizes[t] rows."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    cell = CELLS[mode]
    h, c = h0, h0 if c0 is None else c0
    zero_h = torch.zeros_like(h) if reset_h is None else reset_h
    zero_c = torch.zeros_like(c) if reset_c is None else reset_c
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    gates_x = F.linear(x, w_ih, b_ih).flatten(0, -2)
    steps = len(sizes)
    ys, cs = [None] * steps, [None] * steps
    for t in reversed(range(steps)) if backwards else range(steps):
        n, begin = sizes[t], starts[t]
        h_before, c_before = h_prev, c_prev = [s if n == s.size(0) else s[:n] for s in (h, c)]
        cut = None if reset is None else _cut_before(t, n, sizes, starts, lengths, reset, backwards)
        if cut is not None:
            h_prev = torch.where(cut, zero_h[:n], h_prev)
            c_prev = torch.where(cut, zero_c[:n], c_prev)
        h_in = h_prev if h_mask is None else h_prev * h_mask[:n]
        h_t, c_t = cell(gates_x[begin : begin + n], F.linear(h_in, w_hh, b_hh), h_prev, c_prev)
        if w_hr is not None:
            h_t = F.linear(h_t, w_hr)
        h_t = _zone_out(zone_h, begin, h_t, h_prev)
        c_t = _zone_out(zone_c, begin, c_t, c_prev)
        ys[t], cs[t] = h_t, c_t
        if lengths is not None:  # a finished row is frozen, and its outputs are zero
            alive = (t < lengths[:n]).unsqueeze(1)
            ys[t], cs[t] = h_t.where(alive, 0), c_t.where(alive, 0)
            h_t, c_t = torch.where(alive, h_t, h_before), torch.where(alive, c_t, c_before)
        h, c = [new if n == old.size(0) else torch.cat([new, old[n:]]) for new, old in ((h_t, h), (c_t, c))]
    y = torch.cat(ys) if ys else x.new_zeros(0, h0.size(1))
    c_sequence = None if c0 is None else torch.cat(cs) if cs else x.new_zeros(0, c.size(1))
    return y, h.clone() if h is h0 else h, c.clone() if c is c0 else c, c_sequence


def _zone_out(zone: Tensor | None, begin: int, new: Tensor, old: Tensor) -> Tensor:
    """Krueger et al. (2017): each unit keeps its old value where the mask is true; without dimensions: on average."""
    if zone is None:
        return new
    if zone.dim():
        return torch.where(zone[begin : begin + new.size(0)], old, new)
    return new + zone * (old - new)


def _cut_before(t, n, sizes, starts, lengths, reset, backwards):
    """Mask [n, 1] of the rows whose state starts anew before step t is taken; None where no row's does.

    reset[t] cuts a row between t - 1 and t. Going backwards that cut is met on the way from t to t - 1.
    """
    step = t + 1 if backwards else t
    if step == len(sizes):
        return None
    cut = reset[starts[step] : starts[step] + min(n, sizes[step])]
    if lengths is not None:
        cut = cut & (step < lengths[: cut.size(0)])
    return F.pad(cut, (0, n - cut.size(0))).unsqueeze(1)


def torch_layer(mode: str, x: Tensor, h0: Tensor, c0: Tensor | None, weights: list[Tensor]):
    """y, h_n and c_n of PyTorch's own layer or cell; padded input, no projection, no option."""
    directions, state = h0.size(0) if h0.dim() == 3 else 1, h0 if c0 is None else [h0, c0]
    if h0.dim() == 2:
        cell = {"LSTM": torch.lstm_cell, "GRU": torch.gru_cell}.get(mode)
        found = (cell or getattr(torch, mode.lower() + "_cell"))(x, state, *weights)
        return (found, None, None) if c0 is None else (found[0], None, found[1])
    run = {"LSTM": torch.lstm, "GRU": torch.gru}.get(mode) or getattr(torch, mode.lower())
    biased = len(weights) // directions == 4
    y, *states = run(x, state, list(weights), biased, 1, 0.0, False, directions == 2, False)
    return y, states[0], states[1] if c0 is not None else None


def gradients(mode, args, weights, grads, wanted) -> list[Tensor | None]:
    """Gradients of x, h0, c0, reset_h, reset_c and the weights where wanted, differentiable to any order in grad mode.

    args are those of the scan without mode and weights; grads those of its results, None where there is none.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        # fresh views: an input that is given twice still gets one gradient for each of its places
        inputs = [None if t is None else t.view_as(t) for t in (*args[:3], *args[6:8], *weights)]
        x, h0, c0, reset_h, reset_c = inputs[:5]
        outputs = scan(mode, x, h0, c0, inputs[5:], *args[3:6], reset_h, reset_c, *args[8:])
    pairs = [(t, g) for t, g in zip(outputs, grads, strict=True) if t is not None and g is not None and t.requires_grad]
    chosen = [t for t, want in zip(inputs, wanted, strict=True) if want]
    if not pairs or not chosen:
        return [None] * len(inputs)
    outputs, grads = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outputs, chosen, grads, create_graph=differentiable, allow_unused=True))
    return [next(found) if want else None for want in wanted]
