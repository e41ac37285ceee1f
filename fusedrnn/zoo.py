"""Cells from the literature, written with :func:`fusedrnn.cell`: to use, and to begin one's own from."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .compiler import cell, layer_norm

__all__ = [
    "augru",
    "cifg_lstm",
    "dreamer_gru",
    "indrnn",
    "layer_norm_gru",
    "layer_norm_lstm",
    "layer_norm_lstm_fed_back",
    "ligru",
    "mgu",
    "min_gru",
    "peephole_lstm",
    "slstm",
]
_NORM_OF_GATES = {"gain_x": 1.0, "gain_r": 1.0, "shift": 0.0}
_NORM_OF_C = {"gain_c": 1.0, "shift_c": 0.0}


@cell(gates="i f g o", states="h c", parameters="p_i p_f p_o")
def peephole_lstm(x, r, s, p):
    """LSTM whose gates see the cell state. Gers & Schmidhuber, Recurrent nets that time and count, 2000."""
    i = torch.sigmoid(x.i + r.i + p.p_i * s.c)
    f = torch.sigmoid(x.f + r.f + p.p_f * s.c)
    c = f * s.c + i * torch.tanh(x.g + r.g)
    o = torch.sigmoid(x.o + r.o + p.p_o * c)
    return o * torch.tanh(c), c


@cell(gates="f g o", states="h c")
def cifg_lstm(x, r, s):
    """LSTM with coupled input and forget gates, i = 1 - f. Greff et al., LSTM: a search space odyssey, 2017."""
    f, g, o = x + r
    f = torch.sigmoid(f)
    c = f * s.c + (1 - f) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@cell(gates="n", states="h", recurrent="", parameters="u")
def indrnn(x, r, s, p):
    """Units that see but their own past. Li et al., Independently recurrent neural network (IndRNN), 2018."""
    return torch.relu(x.n + p.u * s.h)


@cell(gates="z n", states="h")
def ligru(x, r, s):
    """Light GRU: no reset gate, a relu. Ravanelli et al., Light gated recurrent units for speech recognition, 2018.

    Without the batch normalisation of the input part, which the authors need where sequences are long.
    """
    z, n = x + r
    z = torch.sigmoid(z)
    return z * s.h + (1 - z) * torch.relu(n)


@cell(gates="f n", states="h")
def mgu(x, r, s):
    """Minimal gated unit. Zhou et al., Minimal gated unit for recurrent neural networks, 2016.

    The gate multiplies the recurrent part, as in PyTorch's GRU; in the article it multiplies h before the product.
    """
    f = torch.sigmoid(x.f + r.f)
    return (1 - f) * s.h + f * torch.tanh(x.n + f * r.n)


@cell(gates="z n", states="h", recurrent="")
def min_gru(x, r, s):
    """Gates of the input alone. Feng et al., Were RNNs all we needed?, 2024."""
    z = torch.sigmoid(x.z)
    return (1 - z) * s.h + z * x.n


@cell(gates="r u n", states="h", inputs="score")
def augru(x, r, s, e):
    """GRU with an attention score in its update gate. Zhou et al., Deep interest evolution network, 2019.

    The reset gate multiplies the recurrent part, as in PyTorch's GRU.
    """
    reset, update = torch.sigmoid(x.r + r.r), torch.sigmoid(x.u + r.u)
    n = torch.tanh(x.n + reset * r.n)
    return s.h + e.score * update * (n - s.h)


@cell(gates="i f z o", states="h c n m")
def slstm(x, r, s):
    """LSTM with exponential gates. Beck et al., xLSTM: extended long short-term memory, 2024.

    n sums up the gates, and m, the largest exponent so far, keeps both exponentials from overflowing: the true c and n
    are those of the state times exp(m). Heads are ``fusedrnn.Recurrent(fusedrnn.zoo.slstm, ..., heads=4)``.
    """
    i, f, z, o = x + r
    log_f = F.logsigmoid(f) + s.m
    m = torch.maximum(log_f, i)
    i, f = torch.exp(i - m), torch.exp(log_f - m)
    c, n = f * s.c + i * torch.tanh(z), f * s.n + i
    return torch.sigmoid(o) * c / n, c, n, m


@cell(gates="i f g o", states="h c", gate_parameters=_NORM_OF_GATES, parameters=_NORM_OF_C)
def layer_norm_lstm(x, r, s, p):
    """LSTM with layer normalisation of W_ih x, of W_hh h and, on its way to h, of c. Ba et al., Layer normalization,
    2016: with ``bias=False``, as their bias stands behind the norms, here ``shift``.
    """
    i, f, g, o = p.gain_x * layer_norm(x) + p.gain_r * layer_norm(r) + p.shift
    c = torch.sigmoid(f) * s.c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(p.gain_c * layer_norm(c) + p.shift_c), c


@cell(gates="i f g o", states="h c", gate_parameters=_NORM_OF_GATES, parameters=_NORM_OF_C)
def layer_norm_lstm_fed_back(x, r, s, p):
    """As ``layer_norm_lstm``, but the next step gets the normalised c, as in the example of PyTorch's own benchmarks
    (benchmarks/fastrnns/custom_lstms.py).
    """
    i, f, g, o = p.gain_x * layer_norm(x) + p.gain_r * layer_norm(r) + p.shift
    c = p.gain_c * layer_norm(torch.sigmoid(f) * s.c + torch.sigmoid(i) * torch.tanh(g)) + p.shift_c
    return torch.sigmoid(o) * torch.tanh(c), c


@cell(gates="r z n", states="h", gate_parameters={"gain_x": 1.0, "gain_r": 1.0, "shift_x": 0.0, "shift_r": 0.0})
def layer_norm_gru(x, r, s, p):
    """GRU with layer normalisation of W_ih x and of W_hh h. Ba et al., Layer normalization, 2016.

    Each is normalised over its three gates together; in the article the candidate's part is normalised by itself. With
    ``bias=False``, as their bias stands behind the norms, here ``shift_x`` and ``shift_r``.
    """
    x, r = p.gain_x * layer_norm(x) + p.shift_x, p.gain_r * layer_norm(r) + p.shift_r
    z = torch.sigmoid(x.z + r.z)
    n = torch.tanh(x.n + torch.sigmoid(x.r + r.r) * r.n)
    return (1 - z) * s.h + z * n


@cell(gates="r n u", states="h", gate_parameters={"gain": 1.0, "shift": 0.0})
def dreamer_gru(x, r, s, p):
    """GRU with one layer normalisation of W_ih x + W_hh h, which keeps its state at first: u begins near σ(-1).

    Hafner et al., Mastering Atari with discrete world models, 2020. Theirs has no bias: ``bias=False``.
    """
    reset, n, u = p.gain * layer_norm(x + r) + p.shift
    u = torch.sigmoid(u - 1)
    return u * torch.tanh(torch.sigmoid(reset) * n) + (1 - u) * s.h
