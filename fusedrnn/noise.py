"""Random masks of a training call: dropout between layers and the regularised cells.

All come from torch's generator, and from one function that a compiled graph keeps as one opaque node, with the layer's
input as its argument: nodes cannot change places or be merged, and the same seed gives the same masks everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .inputs import ScanInputs


class Noise(NamedTuple):
    """The random regularisation of a call; see :class:`fusedrnn.FusedLSTM`."""

    recurrent_dropout: float
    zoneout: Sequence[float]  # of each state
    weight_drop: float
    training: bool

    def apply(self, inputs: ScanInputs) -> ScanInputs:
        """The inputs of one layer, with h_mask, zones and weight dropout applied."""
        if not self.training:
            means = [torch.tensor(z, dtype=torch.float64, device="cpu") if z else None for z in self.zoneout]
            return inputs._replace(zones=means)
        directions = inputs.directions
        steps = inputs.x.new_empty((), dtype=torch.bool).expand(inputs.x.shape[:-1])
        wanted = [(inputs.initial[0], self.recurrent_dropout)]
        for state, rate in zip(inputs.initial, self.zoneout, strict=True):
            wanted.append((steps.unsqueeze(-1).expand(*steps.shape, directions * state.size(2)), rate))
        wanted += [(w, self.weight_drop) for w in inputs.w_hh]
        drawn = iter(draw(inputs.x, [t for t, p in wanted if p], [p for _, p in wanted if p]))
        h_mask, *masks = (next(drawn) if p else None for _, p in wanted)
        zones, kept = masks[: len(self.zoneout)], masks[len(self.zoneout) :]
        w_hh = [w if mask is None else w * mask for w, mask in zip(inputs.w_hh, kept, strict=True)]
        return inputs._replace(h_mask=h_mask, zones=zones, w_hh=w_hh)


def check_option(name: str, value: object) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name == "recompute":
        good, wanted = isinstance(value, bool), "True or False"
    elif name == "forget_bias":
        good, wanted = number or value is None, "a number or None"
    else:
        good, wanted = number and 0 <= value <= 1, "a probability in range [0, 1]"
    if not good:
        raise ValueError(f"{name} should be {wanted}, got {value!r}")


def dropout(x: Tensor, p: float) -> Tensor:
    """As torch.nn.functional.dropout in training; on the CPU with the same numbers."""
    return x * draw(x, [x], [p])[0]


def draw(after: Tensor, like: list[Tensor], rates: list[float]) -> list[Tensor]:
    """A mask like each of ``like``: true with probability ``rate``, or as a float, 0 with that and else 1 / (1 - rate).

    after: what must have been computed before, so that a graph draws in the order of the layers.
    """
    if torch.compiler.is_compiling():
        return _draw_in_graph(after.detach(), [t.detach() for t in like], rates)
    return _draw(after, like, rates)


def _draw(after: Tensor, like: list[Tensor], rates: list[float]) -> list[Tensor]:
    masks = []
    for t, rate in zip(like, rates, strict=True):
        if torch._C._are_functorch_transforms_active():
            # vmap draws once per example, or once for all if they share the argument and the call is not in place
            blank = torch.empty(t.shape, dtype=t.dtype, device=t.device)
        else:
            blank = torch.empty_like(t, requires_grad=False)
        if t.dtype == torch.bool:
            masks.append(blank.bernoulli(rate))
        else:
            masks.append(blank.bernoulli(1 - rate).div_(1 - rate) if rate < 1 else blank.zero_())
    return masks


# torch 2.11 takes tags as a sequence only
_tags = (torch.Tag.nondeterministic_seeded,)
_draw_in_graph = torch.library.custom_op("fusedrnn::draw", _draw, mutates_args=(), tags=_tags)


@_draw_in_graph.register_fake
def _(after, like, rates):
    return [torch.empty_like(t, requires_grad=False) for t in like]
