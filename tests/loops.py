"""The layers as loops over rows and steps, written from the docstrings: the reference for every option."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def step(mode, gates_x, r, h, c):
    """h and c after one step; h still to be projected."""
    if mode == "LSTM":
        i, f, g, o = (gates_x + r).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    if mode == "GRU":
        (x_r, x_z, x_n), (r_r, r_z, r_n) = gates_x.chunk(3), r.chunk(3)
        z = (x_z + r_z).sigmoid()
        return (1 - z) * (x_n + (x_r + r_r).sigmoid() * r_n).tanh() + z * h, c
    return (gates_x + r).tanh() if mode == "RNN_TANH" else (gates_x + r).relu(), c


class Layer(NamedTuple):
    """The arguments of one layer. States, reset states and zones are pairs: of h and of c."""

    mode: str
    x: Tensor  # [T, N, I]
    lengths: list[int]
    states: list[Tensor]  # [D, N, width]
    reset: Tensor | None  # [T, N]
    reset_states: list[Tensor]
    h_mask: Tensor | None  # [D, N, P]
    zones: list[Tensor | None]  # masks [T, N, D*width] or numbers


def zone_out(zone, new, old):
    """zone: of one row and step, or a number"""
    if zone is None:
        return new
    return torch.where(zone, old, new) if zone.dim() else zone * old + (1 - zone) * new


def run_row(layer, d, n, weights):
    """h and c of row n in direction d: after every step, as dicts by step, and at the end."""
    w_ih, w_hh, *rest = weights
    b_ih, b_hh = rest[:2] if len(rest) >= 2 else (None, None)
    length, h_mask = layer.lengths[n], 1 if layer.h_mask is None else layer.h_mask[d, n]
    h, c = (s[d, n] for s in layer.states)
    zones = [
        [z] * length if z is None or not z.dim() else z[:, n].chunk(len(layer.states[0]), -1)[d] for z in layer.zones
    ]
    hs, cs = {}, {}
    for t in reversed(range(length)) if d else range(length):
        border = t + d  # backwards, step t follows step t + 1, whose reset separates them
        if layer.reset is not None and border < length and layer.reset[border, n]:
            h, c = (s[d, n] for s in layer.reset_states)
        gates_x, r = F.linear(layer.x[t, n], w_ih, b_ih), F.linear(h * h_mask, w_hh, b_hh)
        h_new, c_new = step(layer.mode, gates_x, r, h, c)
        if len(rest) % 2:
            h_new = rest[-1] @ h_new
        h, c = hs[t], cs[t] = zone_out(zones[0][t], h_new, h), zone_out(zones[1][t], c_new, c)
    return (hs, cs), (h, c)


def run_layer(layer, weights):
    """h and c after every step [T, N, D*width], zero after a row's end; and at the end of every row."""
    D, (T, N) = len(layer.states[0]), layer.x.shape[:2]
    count = len(weights) // D
    rows = [[run_row(layer, d, n, weights[d * count : (d + 1) * count]) for n in range(N)] for d in range(D)]
    tables = []
    for which, state in enumerate(layer.states):
        zero = layer.x.new_zeros(state.size(2))
        steps = [rows[d][n][0][which].get(t, zero) for t in range(T) for n in range(N) for d in range(D)]
        tables.append(torch.cat([zero[:0], *steps]).view(T, N, D * len(zero)))
    return tuple(tables), [ends for direction in rows for _, ends in direction]


def run_module(module, x, states, lengths, reset, reset_states, layer_noise=None, between=lambda x: x):
    """All layers: x [T, N, I], states and reset_states (h, c) [L*D, N, .], lengths a list. layer_noise gives masks and
    weights of a layer, between the input of the next layer from an output.

    Returns output, h_n, c_n, and for each layer (h, c) after every step; zero after a row's end.
    """
    D, sequences, last = 1 + module.bidirectional, [], []
    for layer in range(module.num_layers):
        x = between(x) if layer else x
        planes = slice(layer * D, layer * D + D)
        weights = [w for names in module._all_weights[planes] for w in (getattr(module, name) for name in names)]
        initial, fresh = ([s[planes] for s in kind] for kind in (states, reset_states))
        h_mask, zones = None, (None, None)
        if layer_noise is not None:
            h_mask, *zones, weights = layer_noise(x, *initial, weights)
        tables, ends = run_layer(Layer(module.mode, x, lengths, initial, reset, fresh, h_mask, zones), weights)
        last += ends
        sequences.append(tables)
        x = tables[0]
    h_n, c_n = (
        torch.cat([s.flatten()[:0], *(ends[which] for ends in last)]).view(s.shape) for which, s in enumerate(states)
    )
    return x, h_n, c_n, sequences
