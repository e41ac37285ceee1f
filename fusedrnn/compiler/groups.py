"""What a cell's function is given: gates in groups, and states, vectors and inputs by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor


class CellError(ValueError):
    """A cell that cannot be: what is wrong, where, and what is allowed."""


class GroupError(AttributeError):
    """A name that a group lacks, or two groups that do not go together."""


class Group:
    """Values by name: ``x.i``, or ``i, f, g, o = x``.

    ``+ - *`` between groups of gates, with numbers and tensors, are done gate by gate. A ``follower`` has a value for
    every gate, of which those count that the other group has too.
    """

    def __init__(self, what: str, names: Sequence[str], values: Sequence[Any], follower: bool = False):
        object.__setattr__(self, "_what", what)
        object.__setattr__(self, "_values", dict(zip(names, values, strict=True)))
        object.__setattr__(self, "_follower", follower)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._values:
            raise GroupError(f"{self._what} has no {name!r}, only {', '.join(self._values) or 'nothing'}")
        return self._parts()[name]

    def _parts(self) -> dict[str, Any]:
        return self._values

    def __setattr__(self, name: str, value: Any) -> None:
        raise GroupError(f"{self._what} cannot be changed: return the new states")

    def __iter__(self) -> Iterator[Any]:
        return iter(self._parts().values())

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"{self._what}({', '.join(self._values)})"


class Gates(Group):
    """``values`` are the gates' numbers one by one, or all side by side in one tensor, [.., G*H]: then a gate's numbers
    are a part of it, and arithmetic between groups is done on the whole."""

    def __init__(self, what: str, names: Sequence[str], values: Sequence[Any] | Tensor, follower: bool = False):
        whole = values if isinstance(values, Tensor) else None
        super().__init__(what, names, values if whole is None else [None] * len(names), follower)
        object.__setattr__(self, "_whole", whole)
        object.__setattr__(self, "_apart", whole is None)

    def _parts(self) -> dict[str, Any]:
        if not self._apart:
            self._values.update(zip(self._values, self._whole.chunk(len(self._values), -1), strict=True))
            object.__setattr__(self, "_apart", True)
        return self._values

    def _with(self, values: Sequence[Any] | Tensor) -> Gates:
        """The same gates with other values."""
        return Gates("a group", list(self._values), values)

    def _common(self, other: Gates) -> list[str]:
        """The gates of what is made of both."""
        names = list((other if self._follower else self)._values)
        for group in (self, other):
            theirs = set(group._values)
            if not (theirs >= set(names) if group._follower else theirs == set(names)):
                gates = (f"{g._what} has {', '.join(g._values) or 'none'}" for g in (self, other))
                raise GroupError(f"two groups have different gates: {'; '.join(gates)}")
        return names

    def _combined(self, other: Any, operation: Callable[[Any, Any], Any]) -> Gates:
        if not isinstance(other, Gates):
            if not isinstance(other, (int, float, Tensor)):
                return NotImplemented
            if self._whole is not None and not isinstance(other, Tensor):
                return Gates(self._what, list(self._values), operation(self._whole, other), self._follower)
            values = [operation(value, other) for value in self]
            return Gates(self._what, list(self._values), values, self._follower)
        names = self._common(other)
        follower = self._follower and other._follower
        if self._whole is not None and other._whole is not None and list(self._values) == list(other._values):
            return Gates("a group", names, operation(self._whole, other._whole), follower)
        ours, theirs = self._parts(), other._parts()
        return Gates("a group", names, [operation(ours[name], theirs[name]) for name in names], follower)

    def __add__(self, other):
        return self._combined(other, lambda a, b: a + b)

    def __sub__(self, other):
        return self._combined(other, lambda a, b: a - b)

    def __mul__(self, other):
        return self._combined(other, lambda a, b: a * b)

    def __radd__(self, other):
        return self._combined(other, lambda a, b: b + a)

    def __rsub__(self, other):
        return self._combined(other, lambda a, b: b - a)

    def __rmul__(self, other):
        return self._combined(other, lambda a, b: b * a)

    def __neg__(self):
        values = [-value for value in self] if self._whole is None else -self._whole
        return Gates(self._what, list(self._values), values, self._follower)
