"""A cell's function, run once on small tensors and recorded as a graph of operations of one unit."""

from __future__ import annotations

import linecache
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .graph import Graph, Node
from .groups import CellError, Gates, GroupError
from .lower import ALLOWED, LOWER, NotAllowed
from .norms import recorder as norm_recorder

ROWS, UNITS = 3, 5  # of the traced tensors: neither 1 nor equal, so that shapes tell what a tensor is
_FOREIGN = tuple(os.path.dirname(os.path.abspath(path)) + os.sep for path in (torch.__file__, __file__))
_CREATED = ("lift_fresh", "scalar_tensor", "full", "zeros", "ones", "empty.memory_format", "detach")


class Trace(NamedTuple):
    graph: Graph
    leaves: dict[str, list[Node]]  # by kind: graph.LEAVES, but not ds
    states: list[Node]  # the new ones
    names: dict[Node, str]  # the user's


def trace(cell, dtype: torch.dtype = torch.float64, rows: int = ROWS, units: int = UNITS) -> Trace:
    """Records the cell's function. What a kernel cannot do is a CellError that names operation and line."""
    graph = Graph()
    shapes = {
        "x": [(rows, units)] * len(cell.gates),
        "r": [(rows, units)] * len(cell.recurrent),
        "s": [(rows, units)] * len(cell.states),
        "p": [(units,)] * cell.vectors,
        "e": [(rows, 1)] * len(cell.inputs) + [(rows, units)] * len(cell.unit_inputs),
    }
    generator = torch.Generator("cpu").manual_seed(0)
    tensors = {
        kind: [torch.rand(shape, dtype=dtype, generator=generator, device="cpu") + 0.5 for shape in of_kind]
        for kind, of_kind in shapes.items()
    }
    leaves = {kind: [graph.leaf(kind, i) for i in range(len(of_kind))] for kind, of_kind in shapes.items()}
    recorder = _Recorder(cell, graph, (rows, units))
    for kind, of_kind in tensors.items():
        for tensor, leaf in zip(of_kind, leaves[kind], strict=True):
            recorder.know(tensor, leaf)
    arguments = cell.arguments(tensors["x"], tensors["r"], tensors["s"], tensors["p"], tensors["e"])
    with torch.inference_mode(False), torch.enable_grad(), recorder:
        returned = recorder.call(cell.function, arguments)
    states = recorder.new_states(returned)
    return Trace(graph, leaves, states, recorder.names)


class _Recorder(TorchDispatchMode):
    """Makes a node of every operation of PyTorch's."""

    def __init__(self, cell, graph: Graph, row_shape: tuple[int, int]):
        super().__init__()
        self.cell, self.graph, self.row_shape = cell, graph, row_shape
        self.paused = False  # operations are not the user's
        self.names: dict[Node, str] = {}
        self.known: dict[int, tuple[Tensor, Node]] = {}  # by id; holding the tensors keeps their ids theirs

    def know(self, tensor: Tensor, node: Node) -> None:
        self.known[id(tensor)] = tensor, node

    def refuse(self, what: str, line: str | None = None) -> CellError:
        return CellError(f"cell {self.cell.name}: {what}\n  {line or _line_of(_user_frame())}")

    def call(self, function: Callable, arguments: Sequence[Any]) -> Any:
        token = norm_recorder.set(self.normalise)
        try:
            return function(*arguments)
        except CellError:
            raise
        except Exception as error:
            raise self.refuse(_explained(error), _line_of_traceback(error)) from error
        finally:
            norm_recorder.reset(token)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        name += f".{func._overloadname}" if func._overloadname not in ("", "default") else ""
        self.check_gradients(name)
        if func._schema.is_mutable:
            raise self.refuse(f"{name} changes a tensor in place: make a new one")
        if name in _CREATED and not any(id(a) in self.known for a in args if isinstance(a, Tensor)):
            return func(*args, **kwargs)
        if name not in LOWER:
            raise self.refuse(f"{name} is not an operation on the numbers of one unit; allowed are {ALLOWED}")
        values = [self.argument(name, a) for a in args]
        options = {k: self.argument(name, v) for k, v in kwargs.items()}
        self.take_names()
        try:
            node = LOWER[name](*_converted(name, values, self.graph), **options)
        except NotAllowed as reason:
            raise self.refuse(f"{name} {reason}") from None
        result = func(*args, **kwargs)
        main = result[0] if isinstance(result, tuple) else result
        if main.dim() > 2:
            raise self.refuse(f"{name} makes a tensor of shape {list(main.shape)}: a cell's have rows and units only")
        self.know(main, node)
        return result

    def check_gradients(self, name: str) -> None:
        if not torch.is_grad_enabled():
            raise self.refuse(
                f"{name} with gradients switched off (torch.no_grad, an autograd.Function): the kernel has them. "
                "To stop a gradient, use detach()"
            )

    def normalise(self, name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        """New tensors, known as the parts of one node that is the norm."""
        self.check_gradients(name)
        for t in tensors:
            if id(t) not in self.known or t.shape != self.row_shape or self.known[id(t)][1].is_mask:
                what = f"a tensor of {str(t.dtype).removeprefix('torch.')} {list(t.shape)}"
                raise self.refuse(f"{name} takes gates or a state, which have a number a row and unit, not {what}")
        node = self.graph.make(name, *(self.known[id(t)][1] for t in tensors))
        self.paused = True
        made = [t.clone() for t in tensors]
        self.paused = False
        for place, t in enumerate(made):
            self.know(t, node if len(made) == 1 else self.graph.make("part", node, place))
        return made

    def argument(self, name: str, a: Any) -> Any:
        """The node of a tensor; anything else itself."""
        if isinstance(a, complex):
            raise self.refuse(f"{name} takes the complex number {a}: a cell's are real")
        if not isinstance(a, Tensor):
            return a
        if id(a) in self.known:
            return self.known[id(a)][1]
        if a.numel() != 1 or a.dim() > 1:
            raise self.refuse(
                f"{name} takes a tensor of shape {list(a.shape)} that is not one of the cell's: constants are numbers; "
                "vectors are declared in parameters, sequences in inputs"
            )
        if a.requires_grad:
            raise self.refuse(f"{name} takes a tensor that requires a gradient: declare it in parameters")
        return self.graph.const(a.double().item())  # of a dtype: what float32 rounded stays so

    def take_names(self) -> None:
        """What the function's local variables are called by now."""
        frame = sys._getframe(2)
        while frame and frame.f_code is not getattr(self.cell.function, "__code__", None):
            frame = frame.f_back
        for name, value in frame.f_locals.items() if frame else ():
            values = {name: value}
            if isinstance(value, Gates):
                values = {f"{name}_{gate}": part for gate, part in value._values.items()}
            for called, part in values.items():
                if isinstance(part, Tensor) and id(part) in self.known and self.known[id(part)][1].args:
                    self.names.setdefault(self.known[id(part)][1], called)

    def new_states(self, returned: Any) -> list[Node]:
        states = list(returned) if isinstance(returned, (tuple, list)) else [returned]
        line = definition_of(self.cell.function)
        if len(states) != len(self.cell.states):
            wanted = f"{len(self.cell.states)} ({', '.join(self.cell.states)})"
            raise self.refuse(f"it returns {len(states)} new states, not {wanted}", line)
        nodes = []
        for name, state in zip(self.cell.states, states, strict=True):
            node = self.known[id(state)][1] if isinstance(state, Tensor) and id(state) in self.known else None
            if node is None:
                what = f"a tensor of shape {list(state.shape)}" if isinstance(state, Tensor) else type(state).__name__
                raise self.refuse(f"the new state {name} is {what}, not made from what the cell is given", line)
            if node.is_mask:
                raise self.refuse(f"the new state {name} is the result of a comparison, not a number", line)
            nodes.append(node)
        return nodes


# How many arguments are a unit's numbers, where it is not two of "….Tensor" and "….Scalar" and one of any other.
_TENSORS = {"where.self": 3, "maximum": 2, "minimum": 2, "addcmul": 3, "addcdiv": 3, "lerp.Tensor": 3}


def _converted(name: str, values: list[Any], graph: Graph) -> list[Any]:
    """Numbers in the place of tensors become nodes; those that are options stay."""
    count = _TENSORS.get(name, 2 if name.endswith((".Tensor", ".Scalar")) else 1)
    is_number = [i < count and isinstance(v, (int, float)) for i, v in enumerate(values)]
    return [graph.const(v) if wanted else v for v, wanted in zip(values, is_number, strict=True)]


def _explained(error: Exception) -> str:
    text = str(error)
    if "Boolean value of Tensor" in text:
        return "a branch cannot depend on the values of a tensor: use torch.where"
    if "cannot be converted to Scalar" in text or "only one element tensors can be converted" in text:
        return "the values of a tensor cannot be read while a kernel is made from the function"
    return text if isinstance(error, GroupError) else f"{type(error).__name__}: {text}"


def _is_foreign(path: str) -> bool:
    return os.path.abspath(path).startswith(_FOREIGN)


def _user_frame():
    frame = sys._getframe(1)
    while frame.f_back and _is_foreign(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def _line_of(frame) -> str:
    return _line(frame.f_code.co_filename, frame.f_lineno)


def _line_of_traceback(error: Exception) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_foreign(f.filename)]
    return _line(frames[-1].filename, frames[-1].lineno) if frames else ""


def definition_of(function: Callable) -> str:
    code = getattr(function, "__code__", None)
    return _line(code.co_filename, code.co_firstlineno) if code else repr(function)


def _line(path: str, number: int) -> str:
    return f"{path}:{number}: {linecache.getline(path, number).strip()}".rstrip(": ")
