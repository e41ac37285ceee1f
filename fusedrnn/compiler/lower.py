"""PyTorch's operations in terms of the few that kernels know. Whatever is not listed here is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

from .graph import Node

INFINITY = float("inf")
ALLOWED = (
    "+ - * /, neg, sigmoid, tanh, relu, exp, expm1, log, log1p, logsigmoid, softplus, sqrt, rsqrt, reciprocal, abs, "
    "sign, square, pow by whole numbers from -8 to 8 or 0.5, minimum, maximum, clamp by numbers, where, comparisons, "
    "logical operations, lerp, silu, gelu(approximate='tanh'), hardsigmoid, hardtanh, leaky_relu, elu, detach, "
    "constants, and fusedrnn.layer_norm and rms_norm over a row"
)


class NotAllowed(Exception):
    """What is wrong with an operation, in words that follow its name."""


def value(node: Node) -> Node:
    """A mask as a number: 1 where it is true."""
    return node.graph.make("where", node, 1, 0) if node.is_mask else node


def mask(node: Node) -> Node:
    if not node.is_mask:
        raise NotAllowed("takes the result of a comparison")
    return node


def unary(op: str) -> Callable:
    return lambda x: value(x).graph.make(op, value(x))


def scaled(op: str) -> Callable:
    def lowered(a: Node, b: Node, alpha: float = 1) -> Node:
        return a.graph.make(op, value(a), value(b) * alpha)

    return lowered


def binary(op: str) -> Callable:
    return lambda a, b: a.graph.make(op, value(a), value(b))


def swapped(op: str) -> Callable:
    return lambda a, b: a.graph.make(op, value(b), value(a))


def negated(op: str) -> Callable:
    return lambda a, b: a.graph.make("not", a.graph.make(op, value(a), value(b)))


def logical(op: str) -> Callable:
    return lambda *masks: masks[0].graph.make(op, *map(mask, masks))


def exclusive_or(a: Node, b: Node) -> Node:
    make = a.graph.make
    return make("and", make("or", mask(a), mask(b)), make("not", make("and", a, b)))


def power(x: Node, exponent: float) -> Node:
    x = value(x)
    if exponent == 0.5:
        return x.graph.make("sqrt", x)
    if exponent == -0.5:
        return x.graph.make("rsqrt", x)
    if exponent != int(exponent) or not -8 <= exponent <= 8:
        raise NotAllowed(f"by {exponent:g}: only whole numbers from -8 to 8, 0.5 and -0.5")
    if exponent < 0:
        return x.graph.const(1) / power(x, -exponent)
    if exponent == 0:
        return x.graph.const(1)
    half = power(x, exponent // 2) if exponent > 1 else None
    if half is None:
        return x
    return half * half * x if exponent % 2 else half * half


def clamp(x: Node, low: float | None = None, high: float | None = None) -> Node:
    low, high = (-INFINITY if low is None else low), (INFINITY if high is None else high)
    if isinstance(low, Node) or isinstance(high, Node):
        raise NotAllowed("by tensors: use torch.minimum and torch.maximum")
    return x.graph.make("clamp", value(x), low, high)


def hardtanh(x: Node, low: float = -1, high: float = 1) -> Node:
    return x.graph.make("hardtanh", value(x), low, high)


def softplus(x: Node, beta: float = 1, threshold: float = 20) -> Node:
    x, make = value(x), x.graph.make
    scaled = x * beta
    return make("where", make("lt", threshold, scaled), x, make("softplus", scaled) / beta)


def log_sigmoid(x: Node) -> Node:
    return -x.graph.make("softplus", -value(x))


def silu(x: Node) -> Node:
    x = value(x)
    return x * x.graph.make("sigmoid", x)


def gelu(x: Node, approximate: str = "none") -> Node:
    if approximate != "tanh":
        raise NotAllowed("by erf: use approximate='tanh'")
    x = value(x)
    inner = (x + power(x, 3) * 0.044715) * math.sqrt(2 / math.pi)
    return x * 0.5 * (x.graph.make("tanh", inner) + 1)


def leaky_relu(x: Node, slope: float = 0.01) -> Node:
    x, make = value(x), x.graph.make
    return make("where", make("lt", 0, x), x, x * slope)


def elu(x: Node, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Node:
    x, make = value(x), x.graph.make
    # clamped: an exponential that is not selected must not become infinite, whose gradient times 0 were NaN
    below = make("expm1", make("clamp", x * input_scale, -INFINITY, 0)) * (alpha * scale)
    return make("where", make("lt", 0, x), x * scale, below)


def threshold(x: Node, limit: float, replacement: float) -> Node:
    x, make = value(x), x.graph.make
    return make("where", make("le", x, limit), replacement, x)


def lerp(start: Node, end: Node, weight: Node | float) -> Node:
    return start + (end - start) * weight


def select(condition: Node, a: Node, b: Node) -> Node:
    return condition.graph.make("where", mask(condition), value(a), value(b))


def divide(a: Node, b: Node) -> Node:
    return value(a) / value(b)


def like(fill: float) -> Callable:
    return lambda x, **layout: x.graph.const(fill)


def converted(x: Node, dtype=None, **layout) -> Node:
    if x.is_mask and dtype is not None and dtype.is_floating_point:
        return value(x)
    raise NotAllowed("changes the type of a tensor")


def same(x: Node, *shape, **layout) -> Node:
    return x


LOWER = {
    "add.Tensor": scaled("add"),
    "sub.Tensor": scaled("sub"),
    "rsub.Scalar": lambda a, b, alpha=1: a.graph.make("sub", b, value(a) * alpha),
    "rsub.Tensor": lambda a, b, alpha=1: a.graph.make("sub", value(b), value(a) * alpha),
    "mul.Tensor": binary("mul"),
    "div.Tensor": divide,
    "neg": unary("neg"),
    "reciprocal": lambda x: x.graph.const(1) / value(x),
    "pow.Tensor_Scalar": power,
    **{name: unary(name) for name in ("sigmoid", "tanh", "relu", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt")},
    **{name: unary(name) for name in ("abs", "sign")},
    "sgn": unary("sign"),
    "maximum": binary("maximum"),
    "minimum": binary("minimum"),
    "clamp": clamp,
    "clamp.Tensor": clamp,
    "clamp_min": clamp,
    "clamp_max": lambda x, high: clamp(x, None, high),
    "hardtanh": hardtanh,
    "hardsigmoid": lambda x: hardtanh(value(x) + 3, 0, 6) / 6,
    "softplus": softplus,
    "log_sigmoid_forward": log_sigmoid,
    "silu": silu,
    "gelu": gelu,
    "leaky_relu": leaky_relu,
    "elu": elu,
    "celu": lambda x, alpha=1: elu(x, alpha, 1, 1 / alpha),
    "threshold": threshold,
    "lerp.Tensor": lerp,
    "lerp.Scalar": lerp,
    "addcmul": lambda x, a, b, value=1: x + a * b * value,
    "addcdiv": lambda x, a, b, value=1: x + a / b * value,
    "where.self": select,
    "masked_fill.Scalar": lambda x, m, other: x.graph.make("where", mask(m), other, value(x)),
    "masked_fill.Tensor": lambda x, m, other: x.graph.make("where", mask(m), other, value(x)),
    **{f"lt.{kind}": binary("lt") for kind in ("Scalar", "Tensor")},
    **{f"le.{kind}": binary("le") for kind in ("Scalar", "Tensor")},
    **{f"gt.{kind}": swapped("lt") for kind in ("Scalar", "Tensor")},
    **{f"ge.{kind}": swapped("le") for kind in ("Scalar", "Tensor")},
    **{f"eq.{kind}": binary("eq") for kind in ("Scalar", "Tensor")},
    **{f"ne.{kind}": negated("eq") for kind in ("Scalar", "Tensor")},
    **{name: logical("and") for name in ("logical_and", "bitwise_and.Tensor")},
    **{name: logical("or") for name in ("logical_or", "bitwise_or.Tensor")},
    **{name: logical("not") for name in ("logical_not", "bitwise_not")},
    **{name: exclusive_or for name in ("logical_xor", "bitwise_xor.Tensor")},
    "zeros_like": like(0),
    "ones_like": like(1),
    "full_like": lambda x, fill, **layout: x.graph.const(fill),
    "_to_copy": converted,
    "detach": unary("detach"),
    "expand": same,
    "clone": same,
    "alias": same,
}
