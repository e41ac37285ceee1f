"""The tensors of one layer, by name: the only list of them in Python, in the order of csrc/torch/layer.h."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

WEIGHTS = ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr", "vectors", "packed")
DIFFERENTIABLE = ("x", "initial", *WEIGHTS, "reset_states", "step_inputs")  # the first fields of ScanInputs


class ScanInputs(NamedTuple):
    """The tensors of :func:`fusedrnn.scan.scan`. For a single step of a cell, x is [N, I] and states have no D."""

    x: Tensor  # padded [T, N, I], or packed rows [R, I]; without w_ih and b_ih already projected: [.., D*G*H]
    initial: Sequence[Tensor]  # of each state [D, N, width]: h of width P, the others of width H
    w_ih: Sequence[Tensor]  # of each direction [G*H, I], or none
    w_hh: Sequence[Tensor]  # [B*H, P], none for B = 0
    b_ih: Sequence[Tensor] = ()  # [G*H] and [B*H], or none
    b_hh: Sequence[Tensor] = ()
    w_hr: Sequence[Tensor] = ()  # [P, H] of a projection, or none
    vectors: Sequence[Tensor] = ()  # [U, H], none for U = 0
    packed: Sequence[Tensor] = ()  # in place of all of these but w_hr: bytes, see fusedrnn.packing
    reset_states: Sequence[Tensor] = ()  # as initial, or none for zeros
    step_inputs: Sequence[Tensor] = ()  # of the cell, each [T, N] or [T, N, H], packed [R] or [R, H]
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
        # no size where there is another way: sizes are tensors while an older exporter traces
        return len(self.w_hh or self.w_ih or self.packed) or (1 if self.one_step else self.initial[0].shape[0])

    def differentiable(self) -> list[Tensor]:
        """The tensors that can have gradients, always in this order."""
        return [self.x, *(t for field in self[1 : len(DIFFERENTIABLE)] for t in field)]

    def with_differentiable(self, tensors: Sequence[Tensor]) -> ScanInputs:
        """A copy with these differentiable tensors."""
        x, *others = tensors
        rest = iter(others)
        return ScanInputs(
            x, *([next(rest) for _ in field] for field in self[1 : len(DIFFERENTIABLE)]), *self[len(DIFFERENTIABLE) :]
        )

    def tensors(self) -> Iterator[Tensor]:
        """All tensors that are present."""
        for field in self:
            for t in (field,) if field is None or isinstance(field, Tensor) else field:
                if t is not None:
                    yield t

    def has_options(self) -> bool:
        """Is the input packed, or is there an option that torch.nn's layers do not have?"""
        options = (self.batch_sizes, self.lengths, self.reset, self.h_mask, *self.reset_states, *self.zones)
        return any(option is not None for option in options)
