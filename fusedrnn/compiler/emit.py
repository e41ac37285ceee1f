"""Prints a cell as the struct that the drivers take: csrc/cells.h says what it consists of."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .cut import cut
from .graph import Node, ordered
from .norms import NORMS
from .operations import OPERATIONS, SUM, gradients
from .trace import Trace

_LONG = 90  # characters of an expression, beyond which a part of it becomes a variable
_TAKEN = frozenset(
    "V x r s saved prev ds dgates fn where sigmoid sigmoid_grad Tanh Relu forward backward exp log tanh sqrt abs "
    "alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl const constexpr continue "
    "decltype default delete do double else enum explicit export extern false float for friend goto if inline int long "
    "mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public register requires "
    "return short signed sizeof static struct switch template this throw true try typedef typeid typename union "
    "unsigned using virtual void volatile while xor xor_eq char8_t concept consteval constinit co_await co_return "
    "co_yield thread_local kName kGates kRecurrent kStates kVectors kInputs kSaved kGrads kRecurrentGrads kReadsH "
    "INFINITY NAN".split()
)


class Generated(NamedTuple):
    struct: str  # its name in C++; empty of a cell that kernels cannot run, with its graph for text
    key: str  # the name of the cell in the registry: it changes with the text
    text: str
    saved: int
    grads: int
    recurrent_grads: tuple[int, ...]  # the plane of dgates of each recurrent gate


def generate(cell, traced: Trace) -> Generated:
    graph, leaves = traced.graph, traced.leaves
    if any(node.op in NORMS for node in ordered(traced.states)):
        return _without_kernels(cell, traced.states)
    of = [*leaves["x"], *leaves["r"], *leaves["p"], *leaves["e"], *leaves["s"]]
    given = [graph.leaf("ds", i) for i in range(len(cell.states))]
    total = gradients(traced.states, given)
    grads = [total.get(leaf) or graph.const(0) for leaf in of]
    named = list(traced.names)
    of_named = [total.get(node) for node in named]
    targets = [*traced.states, *grads, *named, *(node or graph.const(0) for node in of_named)]
    clean = graph.rebuild(targets, lambda node: node.args[0] if node.op == "detach" else None)
    states, rest = clean[: len(given)], clean[len(given) :]
    grads, rest = rest[: len(of)], rest[len(of) :]
    names = {}
    for node, of_node, name in zip(rest[: len(named)], rest[len(named) :], traced.names.values(), strict=True):
        names.setdefault(node, name)
        names.setdefault(of_node, f"d{name}")
    return _Printer(cell, states, grads, names).generated()


def _without_kernels(cell, states: list[Node]) -> Generated:
    names: dict[Node, str] = {}
    lines = [f"// no kernels: it has a norm over a row. {_legend(cell)}"]
    for node in ordered(states):
        names[node] = f"v{len(lines)}" if node.args else repr(node)
        if node.args:
            lines.append(f"{names[node]} = {node.op}({', '.join(names[a] for a in node.args)})")
    text = "\n".join([*lines, f"s = {', '.join(names[s] for s in states)}\n"])
    return Generated("", f"{cell.name}_{hashlib.sha256(text.encode()).hexdigest()[:12]}", text, 0, 0, ())


def _legend(cell) -> str:
    """What the numbers in brackets are."""
    x = [*cell.gates, *cell.parameters, *(f"{p}.{g}" for p in cell.gate_parameters for g in cell.gates)]
    x += [*cell.inputs, *cell.unit_inputs]
    return f"x: {' '.join(x)}; r: {' '.join(cell.recurrent) or 'none'}; s: {' '.join(cell.states)}"


class _Printer:
    def __init__(self, cell, states: list[Node], grads: list[Node], names: dict[Node, str]):
        self.cell, self.states, self.names = cell, states, names
        G, R, U = len(cell.gates), len(cell.recurrent), cell.vectors
        E = len(cell.inputs) + len(cell.unit_inputs)
        dx, dr, of_vectors = grads[:G], grads[G : G + R], grads[G + R : G + R + U + E]
        self.dstates = grads[G + R + U + E :]
        self.planes = list(dx)
        self.recurrent_grads = []
        for gate, gradient in zip(cell.recurrent, dr, strict=True):  # a plane of its own, or that of the gate's dx
            plane = cell.gates.index(gate)
            if gradient is not dx[plane]:
                plane = len(self.planes)
                self.planes.append(gradient)
            self.recurrent_grads.append(plane)
        self.grads = len(self.planes)
        self.planes += of_vectors
        self.saved = cut([*self.planes, *self.dstates]) or [states[0].graph.leaf("x", 0)]
        self.numbers = {"Gates": G, "Recurrent": R, "States": len(states), "Vectors": U, "Inputs": E}
        self.numbers |= {"Saved": len(self.saved), "Grads": self.grads}

    def generated(self) -> Generated:
        words = re.sub("[^A-Za-z0-9_]", "", self.cell.name.lstrip("_0123456789")).split("_")
        struct = "".join(word[:1].upper() + word[1:] for word in words).removesuffix("Cell") + "Cell"
        body = "\n".join([*self.constants(), "", f"  // {_legend(self.cell)}", *self.forward(), "", *self.backward()])
        key = f"{self.cell.name}_{hashlib.sha256(body.encode()).hexdigest()[:12]}"
        text = f'struct {struct} {{\n  static constexpr const char* kName = "{key}";\n{body}\n}};\n'
        return Generated(struct, key, text, len(self.saved), self.grads, tuple(self.recurrent_grads))

    def constants(self) -> list[str]:
        numbers = ", ".join(f"k{name} = {number}" for name, number in self.numbers.items())
        places = ", ".join(map(str, self.recurrent_grads)) or "0"
        h = self.states[0].graph.leaf("s", 0)
        reads_h = h in ordered(self.states)  # then the backward pass may as well, and only then
        return [
            f"  static constexpr int {numbers};",
            f"  static constexpr int kRecurrentGrads[] = {{{places}}};",
            f"  static constexpr bool kReadsH = {'true' if reads_h else 'false'};",
        ]

    def leaf(self, node: Node, backward: bool) -> str:
        if node.op in ("x", "r", "ds"):
            return f"{node.op}[{node.value}]"
        if node.op == "s":
            return f"{'prev' if backward else 's'}[{node.value}]"
        place = self.numbers["States" if backward else "Gates"] + node.value  # vectors stand behind them, then inputs
        place += self.numbers["Vectors"] if node.op == "e" else 0
        return f"{'prev' if backward else 'x'}[{place}]"

    def forward(self) -> list[str]:
        body = _Body(self.names, lambda node: self.leaf(node, backward=False), [*self.saved, *self.states])
        saves = [f"saved[{i}] = {text};" for i, text in enumerate(body.write(self.saved))]
        lines = body.assign("s", self.states)
        return _function("forward", ("const x", "const r", "s", "saved"), [*body.lines, *saves, *lines])

    def backward(self) -> list[str]:
        names = dict(self.names)
        gates = {"x": self.cell.gates, "r": self.cell.recurrent}
        for node in self.saved:
            if node.is_leaf:
                names.setdefault(node, f"{node.op}_{gates[node.op][node.value]}")
        body = _Body(names, lambda node: self.leaf(node, backward=True), [*self.planes, *self.dstates], self.saved)
        planes = [f"dgates[{i}] = {text};" for i, text in enumerate(body.write(self.planes))]
        lines = body.assign("ds", self.dstates)
        parameters = ("const saved", "const prev", "ds", "dgates")
        return _function("backward", parameters, [*body.lines, *planes, *lines])


def _function(name: str, parameters: Sequence[str], lines: list[str]) -> list[str]:
    text = "\n".join(lines)
    signature = []
    for parameter in parameters:
        array = parameter.removeprefix("const ")
        const = "const V*" if parameter.startswith("const ") else "V*"
        signature.append(f"{const} {array}" if re.search(rf"\b{array}\[", text) else const)
    head = f"  FUSEDRNN_FN static void {name}({', '.join(signature)}) {{"
    return ["  template <class V>", head, *(f"    {line}" for line in lines), "  }"]


class _Body:
    """The lines of a function: a variable for what has a name or is used twice, all else within expressions."""

    def __init__(
        self,
        names: dict[Node, str],
        leaf: Callable[[Node], str],
        targets: Sequence[Node],
        saved: Sequence[Node] = (),
    ):
        self.names, self.leaf = names, leaf
        self.lines: list[str] = []
        self.used_names: set[str] = set()
        self.variables: dict[Node, str] = {}
        for i, node in enumerate(saved):
            self.variables[node] = self.fresh(names.get(node) or f"saved_{i}")
        reads = [f"{name} = saved[{i}]" for i, (_, name) in enumerate(self.variables.items())]
        if reads and any(node in self.variables for node in self.reached(targets)):
            self.lines.append(f"V {', '.join(reads)};")
        reached = self.reached(targets)
        self.uses = Counter(a for node in reached if node not in self.variables for a in node.args)
        self.uses.update(targets)

    def reached(self, targets: Sequence[Node]) -> set[Node]:
        seen: set[Node] = set()
        pending = list(targets)
        while pending:
            node = pending.pop()
            if node not in seen:
                seen.add(node)
                pending.extend(() if node in self.variables else node.args)
        return seen

    def fresh(self, name: str) -> str:
        name = re.sub("_+", "_", name).strip("_") if name.isascii() else ""
        name = f"{name or 'v'}_" if name in _TAKEN or not name else name
        candidate, number = name, 1
        while candidate in self.used_names:
            number += 1
            candidate = f"{name.rstrip('_')}_{number}"
        self.used_names.add(candidate)
        return candidate

    def text(self, node: Node) -> tuple[str, int]:
        """C++ of a value, and how tightly its outermost operator binds."""
        if node in self.variables:
            return self.variables[node], 4
        if node.op == "const":
            return _number(node.value), 4
        if node.is_leaf:
            return self.leaf(node), 4
        operation = OPERATIONS[node.op]
        parts = [self.operand(node, i) for i in range(len(node.args))]
        text = operation.text.format(*parts)
        if node in self.names or self.uses[node] > 1 or len(text) > _LONG:
            return self.define(node, text), 4
        return text, operation.binds

    def operand(self, node: Node, place: int) -> str:
        text, binds = self.text(node.args[place])
        outer = OPERATIONS[node.op].binds
        if outer == 4:
            return text
        # a - (b - c), a * (b * c): what stands on the right of the same operator keeps its parentheses
        return f"({text})" if binds < outer or (binds == outer and (place or outer < SUM)) else text

    def define(self, node: Node, text: str) -> str:
        self.variables[node] = name = self.fresh(self.names.get(node) or f"v{len(self.variables)}")
        self.lines.append(f"{'auto' if node.is_mask else 'V'} {name} = {text};")
        return name

    def write(self, nodes: Sequence[Node]) -> list[str]:
        return [self.text(node)[0] for node in nodes]

    def assign(self, array: str, nodes: Sequence[Node]) -> list[str]:
        """Assignments to an array that is read as well: what reads an element that changed before is a variable."""
        assignments = []
        texts = self.write(nodes)
        for i, (node, text) in enumerate(zip(nodes, texts, strict=True)):
            changed = [j for j in map(int, re.findall(rf"\b{array}\[(\d+)\]", text)) if j < i]
            if changed:
                text = self.define(node, text)
            if text != f"{array}[{i}]":
                assignments.append(f"{array}[{i}] = {text};")
        return assignments


def _number(value: float) -> str:
    if value == int(value) if abs(value) < 1 << 24 else False:
        return f"V({int(value)})"
    text = "NAN" if value != value else "INFINITY" if value == float("inf") else repr(value)
    return f"fn::number<V>({'-INFINITY' if value == float('-inf') else text})"
