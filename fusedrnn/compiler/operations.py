"""The operations a kernel can do: how each is written in C++, and its derivative, which is torch.autograd's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .graph import Node, ordered

SUM, PRODUCT, SIGN, CALL = 1, 2, 3, 4  # how tightly operators bind; 0 is a comparison


class Operation(NamedTuple):
    text: str  # C++ of arguments {0}, {1}, ...
    derivative: Callable | None = None  # (result, *arguments, gradient of result) -> gradient of each argument or None
    binds: int = CALL


def _shared_extreme(wins: str) -> Callable:
    """Of equal arguments each gets half the gradient."""

    def derivative(y: Node, a: Node, b: Node, dy: Node):
        make = y.graph.make
        half = make("where", make("eq", a, b), dy * 0.5, dy)
        a_less, b_less = make("lt", a, b), make("lt", b, a)
        if wins == "larger":
            return make("where", a_less, 0, half), make("where", b_less, 0, half)
        return make("where", b_less, 0, half), make("where", a_less, 0, half)

    return derivative


def _clamp_derivative(y: Node, x: Node, low: Node, high: Node, dy: Node):
    make = y.graph.make
    within = [make("le", low, x)] if low.value != float("-inf") else []
    within += [make("le", x, high)] if high.value != float("inf") else []
    mask = within[0] if len(within) == 1 else make("and", *within)
    return make("where", mask, dy, 0), None, None


def _hardtanh_derivative(y: Node, x: Node, low: Node, high: Node, dy: Node):
    """As of clamp, but zero at the ends too."""
    make = y.graph.make
    return make("where", make("or", make("le", x, low), make("le", high, x)), 0, dy), None, None


OPERATIONS = {
    "add": Operation("{0} + {1}", lambda y, a, b, dy: (dy, dy), SUM),
    "sub": Operation("{0} - {1}", lambda y, a, b, dy: (dy, -dy), SUM),
    "mul": Operation("{0} * {1}", lambda y, a, b, dy: (dy * b, dy * a), PRODUCT),
    "div": Operation("fn::divide({0}, {1})", lambda y, a, b, dy: (dy / b, -(dy / b * y))),
    "neg": Operation("-{0}", lambda y, a, dy: (-dy,), SIGN),
    "sigmoid": Operation("sigmoid({0})", lambda y, a, dy: (y.graph.make("sigmoid_grad", y, dy),)),
    "tanh": Operation("Tanh::apply({0})", lambda y, a, dy: (y.graph.make("tanh_grad", y, dy),)),
    "relu": Operation("Relu::apply({0})", lambda y, a, dy: (y.graph.make("relu_grad", y, dy),)),
    "exp": Operation("fn::exp({0})", lambda y, a, dy: (dy * y,)),
    "expm1": Operation("fn::expm1({0})", lambda y, a, dy: (dy * (y + 1),)),
    "log": Operation("fn::log({0})", lambda y, a, dy: (dy / a,)),
    "log1p": Operation("fn::log1p({0})", lambda y, a, dy: (dy / (a + 1),)),
    "softplus": Operation("fn::softplus({0})", lambda y, a, dy: (dy * y.graph.make("sigmoid", a),)),
    "sqrt": Operation("fn::sqrt({0})", lambda y, a, dy: (dy / (y * 2),)),
    "rsqrt": Operation("fn::rsqrt({0})", lambda y, a, dy: (dy * -0.5 * (y * y * y),)),
    "abs": Operation("fn::abs({0})", lambda y, a, dy: (dy * y.graph.make("sign", a),)),
    "sign": Operation("fn::sign({0})"),
    "maximum": Operation("fn::maximum({0}, {1})", _shared_extreme("larger")),
    "minimum": Operation("fn::minimum({0}, {1})", _shared_extreme("smaller")),
    "clamp": Operation("fn::clamp({0}, {1}, {2})", _clamp_derivative),
    "hardtanh": Operation("fn::clamp({0}, {1}, {2})", _hardtanh_derivative),
    "where": Operation(
        "where({0}, {1}, {2})",
        lambda y, m, a, b, dy: (None, y.graph.make("where", m, dy, 0), y.graph.make("where", m, 0, dy)),
    ),
    "lt": Operation("{0} < {1}", binds=0),
    "le": Operation("{0} <= {1}", binds=0),
    "eq": Operation("{0} == {1}", binds=0),
    "and": Operation("fn::both({0}, {1})"),
    "or": Operation("fn::either({0}, {1})"),
    "not": Operation("fn::opposite({0})"),
    "detach": Operation("{0}"),
    "sigmoid_grad": Operation("sigmoid_grad({0}, {1})"),
    "tanh_grad": Operation("Tanh::grad({0}, {1})"),
    "relu_grad": Operation("Relu::grad({0}, {1})"),
}


def gradients(results: Sequence[Node], grads: Sequence[Node]) -> dict[Node, Node]:
    """The gradient of every node that results with these gradients depend on."""
    total: dict[Node, Node] = {}

    def collect(node: Node, gradient: Node | None) -> None:
        if gradient is not None:
            total[node] = total[node] + gradient if node in total else gradient

    for result, gradient in zip(results, grads, strict=True):
        collect(result, gradient)
    for node in reversed(ordered(results)):
        derivative = node.args and OPERATIONS[node.op].derivative
        if not derivative or node not in total:
            continue
        for argument, gradient in zip(node.args, derivative(node, *node.args, total[node]), strict=True):
            if argument.op != "const":
                collect(argument, gradient)
    return total
