"""Resets with torch.nn's layers, in the two ways in which it is done. Both start every episode with a state of zeros.

x [T, N, I]; reset [T, N] bool, true where an episode begins. They return y first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def split(module: nn.RNNBase, x: Tensor, reset: Tensor) -> tuple[Tensor]:
    """As TorchRL does: every episode becomes a row of its own, padded to the longest, and one call runs them all."""
    (T, N), begins = reset.shape, reset.clone()
    begins[0] = True
    begins = begins.t().flatten().nonzero().squeeze(1)  # the host waits for the GPU to learn how many there are
    lengths = torch.diff(begins, append=begins.new_tensor([N * T]))
    place = torch.arange(int(lengths.max()), device=x.device) < lengths.unsqueeze(1)
    padded = x.new_zeros(*place.shape, x.size(2))
    padded[place] = x.transpose(0, 1).flatten(0, 1)
    y, _ = module(padded.transpose(0, 1))
    return (y.transpose(0, 1)[place].view(N, T, -1).transpose(0, 1),)


def step_by_step(module: nn.RNNBase, x: Tensor, reset: Tensor):
    """A call for each step, as CleanRL's agents make it."""
    zeros = x.new_zeros(module.num_layers, x.size(1), module.hidden_size)
    lstm, y = module.mode == "LSTM", []
    state = (zeros, zeros) if lstm else zeros
    for x_t, keep in zip(x.split(1), (~reset).to(x.dtype).unsqueeze(2).split(1), strict=True):
        state = tuple(s * keep for s in state) if lstm else state * keep
        y_t, state = module(x_t, state)
        y.append(y_t)
    return torch.cat(y), state
