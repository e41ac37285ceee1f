"""Cells from the literature, written with :func:`fusedrnn.cell`: to use, and to begin one's own from."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .compiler import cell

__all__ = ["augru", "cifg_lstm", "indrnn", "ligru", "mgu", "min_gru", "peephole_lstm", "slstm"]


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
