"""Cells written in Python: what one unit does in one step."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .emit import Generated, generate
from .groups import CellError, Gates, Group
from .trace import definition_of, trace

MAX_STATES = MAX_INPUTS = 4
_TENSORS_OF_A_LAYER = {"weight_ih", "weight_hh", "weight_hr", "bias_ih", "bias_hh"}
Values = Sequence | Tensor
Initial = float | Callable[[tuple[int, ...]], Tensor]


@dataclass(frozen=True, eq=False)
class Cell:
    """What :func:`cell` makes of a function: run as it is, the function is the reference of its kernel.

    Pickled by reference, as a function is: by module and name. A copy is the same object.
    """

    name: str
    function: Callable
    gates: tuple[str, ...]
    states: tuple[str, ...]
    initial: tuple[Initial, ...]  # of each state: a number, or a function of a shape
    recurrent: tuple[str, ...]
    parameters: tuple[str, ...]
    gate_parameters: tuple[str, ...]
    inputs: tuple[str, ...]
    unit_inputs: tuple[str, ...]
    initial_vectors: Mapping[str, Initial]  # of parameters and gate_parameters that have one

    def __post_init__(self):
        for attribute in ("__module__", "__qualname__", "__doc__"):
            object.__setattr__(self, attribute, getattr(self.function, attribute, None))

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __reduce__(self) -> str:
        if "<locals>" in self.__qualname__:
            raise CellError(f"cell {self.name} cannot be pickled: define it at the top of a module")
        return self.__qualname__

    def __copy__(self) -> Cell:
        return self

    def __deepcopy__(self, memo: dict) -> Cell:
        return self

    def __repr__(self) -> str:
        return f"<cell {self.name}: gates {' '.join(self.gates)}, states {' '.join(self.states)}>"

    @property
    def vectors(self) -> int:
        """How many learned numbers a unit has: one of each parameter, and one a gate of each gate parameter."""
        return len(self.parameters) + len(self.gates) * len(self.gate_parameters)

    def arguments(self, x: Values, r: Values, s: Sequence, p: Values | Group, e: Sequence) -> list[Group]:
        """What the function is called with, of the values of all gates, states, vectors and inputs in order.

        All gates may come side by side in one tensor, and all vectors in one [U, H].
        """
        groups = [Gates("x", self.gates, x), Gates("r", self.recurrent, r), Group("s", self.states, s)]
        if self.parameters or self.gate_parameters:
            groups.append(p if isinstance(p, Group) else self.named_vectors(p))
        if self.inputs or self.unit_inputs:
            groups.append(Group("e", (*self.inputs, *self.unit_inputs), e))
        return groups

    def named_vectors(self, p: Values) -> Group:
        count, values = len(self.gates), list(p[: len(self.parameters)])
        for i, name in enumerate(self.gate_parameters):
            first = len(self.parameters) + i * count
            rows = p[first : first + count]
            rows = rows.flatten() if isinstance(rows, Tensor) else rows
            values.append(Gates(f"p.{name}", self.gates, rows, follower=True))
        return Group("p", (*self.parameters, *self.gate_parameters), values)

    def of_vectors(self, vectors: Tensor | None) -> Callable[..., tuple[Tensor, ...]]:
        """The function in plain PyTorch, as a step of many with the same vectors [U, H]: the parameters, then each
        gate parameter's gates.

        It takes x [N, G*H], r [N, R*H] or None, the states [N, H], and the inputs by name: [N] of one number a row, or
        [N, H]. It returns the new states.
        """
        p = () if vectors is None else self.named_vectors(vectors)

        def step(x: Tensor, r: Tensor | None, *states: Tensor, inputs: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
            e = [t.unsqueeze(-1) if i < len(self.inputs) else t for i, t in enumerate(inputs)]
            returned = self.function(*self.arguments(x, () if r is None else r, states, p, e))
            new = returned if isinstance(returned, (tuple, list)) else (returned,)
            return tuple(t if t.shape == s.shape else t.expand_as(s) for t, s in zip(new, states, strict=True))

        return step

    def generate(self) -> Generated:
        """The C++ of the function as it is now, with the values that it takes from outside."""
        return generate(self, trace(self))


def cell(
    gates: str = "i f g o",
    states: str | Mapping[str, Initial] = "h c",
    recurrent: str | None = None,
    parameters: str | Mapping[str, Initial] = "",
    gate_parameters: str | Mapping[str, Initial] = "",
    inputs: str = "",
    unit_inputs: str = "",
) -> Callable[[Callable], Cell]:
    """Makes a cell of a function of PyTorch's elementwise operations, from which its kernels are generated.

    The function is called with ``x`` and ``r``, the input part and the recurrent part of each gate (``x.i`` is
    ``W_ii x + b_ii``), and ``s``, the states before the step; then with ``p`` if there are parameters, and with ``e``
    if there are inputs. It returns the new states in order. All are tensors [rows, units].

    Args:
        gates: names of the gates, in the order of their weights.
        states: names of the states, four at most. The first is the output, and what the recurrent weight multiplies.
            Or a mapping of names to initial values: numbers, or functions that make a tensor of a shape.
        recurrent: the gates that have a recurrent part: all by default, none if empty.
        parameters: learned vectors of one number a unit. Or a mapping of names to initial values.
        gate_parameters: learned vectors of one number a gate and unit, used as a group: ``p.gain * x``.
        inputs: further inputs, of one number a step and row, four at most with unit_inputs.
        unit_inputs: further inputs, of one number a step, row and unit.

    Raises:
        CellError: the function does what a kernel cannot do, or names are wrong.
    """

    def decorate(function: Callable) -> Cell:
        name = getattr(function, "__name__", None)
        if not callable(function) or name is None:
            raise CellError(f"fusedrnn.cell decorates a function, not {type(function).__name__}: @fusedrnn.cell(...)")
        initial = dict(states) if isinstance(states, Mapping) else dict.fromkeys(_names("states", states), 0.0)
        gate_names = _names("gates", gates)
        made = Cell(
            name=name if name.isidentifier() else "cell",
            function=function,
            gates=gate_names,
            states=_names("states", initial),
            initial=tuple(initial.values()),
            recurrent=gate_names if recurrent is None else _recurrent(gate_names, recurrent),
            parameters=_names("parameters", parameters),
            gate_parameters=_names("gate_parameters", gate_parameters),
            inputs=_names("inputs", inputs),
            unit_inputs=_names("unit_inputs", unit_inputs),
            initial_vectors={**_initial(parameters), **_initial(gate_parameters)},
        )
        _check(made)
        _check_that_sizes_do_not_matter(made)
        return made

    if callable(gates):
        raise CellError("fusedrnn.cell takes names first: @fusedrnn.cell(gates=..., states=...)")
    return decorate


def _initial(given: str | Mapping[str, Initial]) -> Mapping[str, Initial]:
    return given if isinstance(given, Mapping) else {}


def _names(what: str, given: Any) -> tuple[str, ...]:
    if not isinstance(given, (str, list, tuple, Mapping)):
        raise CellError(f"{what} must be names with spaces between them, got {given!r}")
    names = tuple(given.split()) if isinstance(given, str) else tuple(given)
    for name in names:
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
            raise CellError(f"{what}: {name!r} is no name: letters, digits and _, first a letter, and no keyword")
        if names.count(name) > 1:
            raise CellError(f"{what}: {name!r} is there twice")
    return names


def _recurrent(gates: tuple[str, ...], given: str) -> tuple[str, ...]:
    wanted = _names("recurrent", given)
    for name in wanted:
        if name not in gates:
            raise CellError(f"recurrent: there is no gate {name!r}, only {', '.join(gates)}")
    return tuple(gate for gate in gates if gate in wanted)


def _check(made: Cell) -> None:
    if not made.gates:
        raise CellError(f"cell {made.name}: there must be a gate")
    if not 1 <= len(made.states) <= MAX_STATES:
        raise CellError(f"cell {made.name}: there must be 1 to {MAX_STATES} states, got {len(made.states)}")
    if len(made.inputs) + len(made.unit_inputs) > MAX_INPUTS:
        count = len(made.inputs) + len(made.unit_inputs)
        raise CellError(f"cell {made.name}: there may be {MAX_INPUTS} inputs and unit_inputs in all, got {count}")
    for one, other in (("parameters", "gate_parameters"), ("inputs", "unit_inputs")):
        for name in getattr(made, one):
            if name in getattr(made, other):
                raise CellError(f"{name!r} is in {one} and in {other}")
    for name in (*made.parameters, *made.gate_parameters):
        if name in _TENSORS_OF_A_LAYER:
            raise CellError(f"parameters: {name!r} is the name of a weight that every layer has")
    for name, value in (*zip(made.states, made.initial, strict=True), *made.initial_vectors.items()):
        if not callable(value) and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise CellError(f"{name!r} begins with {value!r}, which is no number and no function of a shape")


def _check_that_sizes_do_not_matter(made: Cell) -> None:
    """The same function, traced with other sizes and another dtype, must give the same kernel."""
    texts = [generate(made, trace(made, *sizes)).text for sizes in ((), (torch.float32, 2, 7))]
    if texts[0] != texts[1]:
        where = definition_of(made.function)
        raise CellError(f"cell {made.name}: the function depends on the sizes or the dtype of its tensors\n  {where}")
