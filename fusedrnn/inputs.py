"""The tensors of one layer, by name: the only list of them in Python, in the order of csrc/torch/layer.h."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

WEIGHTS = ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr")
DIFFERENTIABLE = ("x", "initial", *WEIGHTS, "reset_states")  # they come first in ScanInputs


class ScanInputs(NamedTuple):
    """What :func:`fusedrnn.scan.scan` is given. Of one step, x is [N, I] and states have no dimension D."""

    x: Tensor  # padded [T, N, I], or packed rows [R, I]; without w_ih and b_ih already projected: [.., D*G*H]
    initial: Sequence[Tensor]  # of each state [D, N, width]: h of width P, the others of width H
    w_ih: Sequence[Tensor]  # of each direction [G*H, I], or none
    w_hh: Sequence[Tensor]  # [G*H, P]
    b_ih: Sequence[Tensor] = ()  # [G*H], or none
    b_hh: Sequence[Tensor] = ()
    w_hr: Sequence[Tensor] = ()  # [P, H] of a projection, or none
    reset_states: Sequence[Tensor] = ()  # as initial, or none for zeros
    batch_sizes: Tensor | None = None  # [T] int64 on the CPU, of packed rows
    lengths: Tensor | None = None  # [N] int64, only with padded input
    reset: Tensor | None = None  # bool [T, N], packed [R]
    h_mask: Tensor | None = None  # [D, N, P]
    zones: Sequence[Tensor | None] = ()  # of each state, or none: bool [T, N, D*width], or a number

    @property
    def one_step(self) -> bool:
        return self.initial[0].dim() == 2

    @property
    def directions(self) -> int:
        return len(self.w_hh)

    def differentiable(self) -> list[Tensor]:
        """Those that can have gradients, which always come in this order."""
        return [self.x, *(t for field in self[1 : len(DIFFERENTIABLE)] for t in field)]

    def with_differentiable(self, tensors: Sequence[Tensor]) -> ScanInputs:
        """The same with others in their place."""
        x, *others = tensors
        rest = iter(others)
        return ScanInputs(
            x, *([next(rest) for _ in field] for field in self[1 : len(DIFFERENTIABLE)]), *self[len(DIFFERENTIABLE) :]
        )

    def tensors(self) -> Iterator[Tensor]:
        """All that are there."""
        for field in self:
            for t in (field,) if field is None or isinstance(field, Tensor) else field:
                if t is not None:
                    yield t

    def has_options(self) -> bool:
        """Is there anything that torch.nn's layers do not know, or packed input?"""
        options = (self.batch_sizes, self.lengths, self.reset, self.h_mask, *self.reset_states, *self.zones)
        return any(option is not None for option in options)
