"""Arithmetic on one unit as a graph: equal values are one node, and what is exact is simplified as it is built."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

MASKS = frozenset({"lt", "le", "eq", "not", "and", "or"})  # operations that return a mask
COMMUTATIVE = frozenset({"add", "mul", "eq", "and", "or", "maximum", "minimum"})
LEAVES = ("x", "r", "s", "p", "e", "ds")  # gates' two parts, states, unit vectors, per-step inputs, states' gradients


class Node:
    """A value: an operation and its arguments; a constant ("const") and a leaf have a number in their place."""

    __slots__ = ("graph", "op", "args", "value", "order")

    def __init__(self, graph: Graph, op: str, args: tuple[Node, ...], value: float | None):
        self.graph, self.op, self.args, self.value = graph, op, args, value
        self.order = len(graph.nodes)  # arguments are made first: a topological order

    @property
    def is_mask(self) -> bool:
        return self.op in MASKS

    @property
    def is_leaf(self) -> bool:
        return self.op in LEAVES

    def is_number(self, value: float) -> bool:
        return self.op == "const" and self.value == value

    def __add__(self, other):
        return self.graph.make("add", self, other)

    def __sub__(self, other):
        return self.graph.make("sub", self, other)

    def __mul__(self, other):
        return self.graph.make("mul", self, other)

    def __truediv__(self, other):
        return self.graph.make("div", self, other)

    def __neg__(self):
        return self.graph.make("neg", self)

    def __repr__(self):
        if self.value is not None:
            return f"{self.value}" if self.op == "const" else f"{self.op}[{self.value}]"
        return f"{self.op}({', '.join(map(repr, self.args))})"


class Graph:
    def __init__(self):
        self.nodes: dict[tuple, Node] = {}

    def leaf(self, kind: str, index: int) -> Node:
        return self._intern(kind, (), index)

    def const(self, value: float) -> Node:
        return self._intern("const", (), float(value))

    def make(self, op: str, *args: Node | float) -> Node:
        """The simplified result of an operation."""
        nodes = tuple(a if isinstance(a, Node) else self.const(a) for a in args)
        return simplified(op, nodes) or self._intern(op, nodes, None)

    def _intern(self, op: str, args: tuple[Node, ...], value: float | None) -> Node:
        orders = tuple(a.order for a in args)
        # repr tells 0.0 from -0.0 and knows a NaN
        key = (op, tuple(sorted(orders)) if op in COMMUTATIVE else orders, repr(value))
        if key not in self.nodes:
            self.nodes[key] = Node(self, op, args, value)
        return self.nodes[key]

    def rebuild(self, targets: Iterable[Node], replace: Callable[[Node], Node | None]) -> list[Node]:
        """The targets with every node for which ``replace`` returns another in that one's place."""
        done: dict[Node, Node] = {}
        targets = list(targets)
        for node in ordered(targets):
            other = replace(node)
            if other is not None:
                done[node] = done[other]
            elif node.args:
                done[node] = self.make(node.op, *(done[a] for a in node.args))
            else:
                done[node] = node
        return [done[node] for node in targets]


def ordered(targets: Iterable[Node]) -> list[Node]:
    """All nodes that the targets are computed from, and these, arguments first."""
    seen: set[Node] = set()
    pending = list(targets)
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending.extend(node.args)
    return sorted(seen, key=lambda node: node.order)


def simplified(op: str, args: tuple[Node, ...]) -> Node | None:
    """What equals this operation and is simpler, or None. Exact but for the sign of a zero."""
    if len(args) > 0 and all(a.op == "const" for a in args) and op in FOLDS:
        try:
            return args[0].graph.const(FOLDS[op](*(a.value for a in args)))
        except (ArithmeticError, ValueError):
            return None
    rule = RULES.get(op)
    return rule(*args) if rule else None


FOLDS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "tanh": math.tanh,
    "abs": abs,
}


def _first(candidates: Iterator[Node]) -> Node | None:
    return next(candidates, None)


def _add(a: Node, b: Node) -> Iterator[Node]:
    if a.is_number(0):
        yield b
    if b.is_number(0):
        yield a
    if b.op == "neg":
        yield a - b.args[0]
    if a.op == "neg":
        yield b - a.args[0]
    if a.op == b.op == "where" and a.args[0] is b.args[0]:  # two halves of one selection
        if a.args[1].is_number(0) and b.args[2].is_number(0):
            a, b = b, a
        if a.args[2].is_number(0) and b.args[1].is_number(0):
            yield a.graph.make("where", a.args[0], a.args[1], b.args[2])


def _sub(a: Node, b: Node) -> Iterator[Node]:
    if b.is_number(0):
        yield a
    if a.is_number(0):
        yield -b
    if b.op == "neg":
        yield a + b.args[0]


def _mul(a: Node, b: Node) -> Iterator[Node]:
    for one, other in ((a, b), (b, a)):
        if one.is_number(1):
            yield other
        if one.is_number(-1):
            yield -other
    if a.op == "neg":
        yield -(a.args[0] * b)
    if b.op == "neg":
        yield -(a * b.args[0])


def _div(a: Node, b: Node) -> Iterator[Node]:
    if b.is_number(1):
        yield a
    if b.op == "const" and b.value and math.frexp(b.value)[0] in (0.5, -0.5) and abs(b.value) < 2.0**100:
        yield a * (1 / b.value)  # exact: a power of two
    if a.op == "neg":
        yield -(a.args[0] / b)


def _neg(a: Node) -> Iterator[Node]:
    if a.op == "neg":
        yield a.args[0]
    if a.op == "sub":
        yield a.args[1] - a.args[0]


def _not(mask: Node) -> Iterator[Node]:
    if mask.op == "not":
        yield mask.args[0]


def _where(mask: Node, a: Node, b: Node) -> Iterator[Node]:
    if a is b:
        yield a
    if mask.op == "not":
        yield mask.graph.make("where", mask.args[0], b, a)


def _gradient(y: Node, dy: Node, op: str) -> Iterator[Node]:
    if dy.op == "neg":
        yield -y.graph.make(op, y, dy.args[0])


RULES = {
    "add": lambda a, b: _first(_add(a, b)),
    "sub": lambda a, b: _first(_sub(a, b)),
    "mul": lambda a, b: _first(_mul(a, b)),
    "div": lambda a, b: _first(_div(a, b)),
    "neg": lambda a: _first(_neg(a)),
    "not": lambda mask: _first(_not(mask)),
    "where": lambda mask, a, b: _first(_where(mask, a, b)),
    "sigmoid_grad": lambda y, dy: _first(_gradient(y, dy, "sigmoid_grad")),
    "tanh_grad": lambda y, dy: _first(_gradient(y, dy, "tanh_grad")),
}
