"""The cells of test_cells.h in plain PyTorch, for the reference."""

from __future__ import annotations

import torch
from torch import Tensor


def three_states(x: Tensor, r: Tensor, h: Tensor, c: Tensor, n: Tensor) -> tuple[Tensor, ...]:
    i, f, g = (x + r).chunk(3, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    n = torch.lerp(c, n, torch.sigmoid(f))
    return torch.tanh(c) * torch.sigmoid(n), c, n


def four_states(x: Tensor, r: Tensor, h: Tensor, c: Tensor, n: Tensor, m: Tensor) -> tuple[Tensor, ...]:
    (x_a, x_b, x_g), (r_a, r_b, r_g) = x.chunk(3, dim=-1), r.chunk(3, dim=-1)
    a, b = torch.sigmoid(x_a + r_a), torch.sigmoid(x_b + r_b)
    g = torch.tanh(x_g + a * r_g)
    c, n, m = torch.lerp(g, c, b), b * n + a * h, a * m + g
    return torch.lerp(torch.tanh(c - n * m), h, b), c, n, m


CELLS = {"THREE_STATES": three_states, "FOUR_STATES": four_states}
