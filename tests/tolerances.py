"""The tolerances of all comparisons and their justification. Errors are relative to the largest element."""

import math

import torch

# Against torch.nn or the reference in the same dtype, where both err. float64: sums of some hundred terms, each within
# 1.1e-16, so 1e-12 leaves room for ill-conditioned gradients and none for a wrong formula.
SAME = {torch.float64: 1e-12, torch.float32: 5e-5}

# Against float64, ours may err at most this much more than torch.nn does ...
RATIO = 1.5


def floor(dtype: torch.dtype, sensitivity: float) -> float:
    """... beyond this: where torch.nn happens to be exact, a ratio says nothing.

    Two roundings of the largest element (of the state that is stored, and of what it is made from), and what one
    rounding of each input would change: ``sensitivity``, the largest distance between exact results of such inputs.
    """
    return 2 * torch.finfo(dtype).eps + sensitivity


# Against float64 where h is rounded to such a type in every step: 5 units of the largest element, 2^-8 and 2^-10.
IN_A_16_BIT_TYPE = {"bfloat16": 0.02, "float16": 0.005}
# The CUDA kernels on the emulator against float64: sums of some hundred terms, so rounding leaves 2e-15 and 6e-7.
EXACT = {"float64": 1e-10, "float32": 1e-6}
# The CPU kernels alone against float64: the same, and where results are rounded in every step, a few units of that.
ALONE = EXACT | IN_A_16_BIT_TYPE
# Packed layers against float64 ones that hold the same numbers: float32 sums; where the processor multiplies pairs of
# bfloat16, x and h are rounded to them, and for int8 to 127 steps of the largest element, again in every step of every
# layer.
PACKED = {"float32": 5e-5, "float16": 5e-5, "bfloat16": 0.05, "int8": 0.15}
# What a kernel of a 16-bit type or TF32 has before it rounds its results: float32 sums again. Relative to the largest
# element where that is above 1, else absolute.
ROUNDED = 1e-6

# Against torch.nn, element by element, so that zeros must be zeros: both sides take one tanh of the same number. Ours
# and torch's are accurate to 2 ulp, but cuDNN states no bound for its float32.
SATURATED = {torch.float64: 1e-12, torch.float32: 1e-5}


def tanh_bound(x: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """What a kernel's tanh may be off by: 3 eps of itself, and beyond 2, where numbers are eps / 2 apart, 1.7 of those.

    Of all float32 the worst are off by 1.41 eps, and beyond 2 by 0.52 (docs/numerics.md). A GPU's err more.
    """
    eps = torch.finfo(x.dtype).eps
    return torch.where(x.abs() > 2, 0.85 * eps, 3 * eps * exact.abs())


def sigmoid_bound(x: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """The same of sigmoid: exp's error without fused multiply-adds, 1 + 5/4 |x| ulp, and 2 of a sum and a quotient."""
    return (3 + 5 / 4 * x.abs()) * torch.finfo(x.dtype).eps * exact


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, relative to the largest element of b; equal infinities and NaN are no difference."""
    a, b = a.detach().double(), b.detach().double()
    assert a.shape == b.shape, f"{list(a.shape)} instead of {list(b.shape)}"
    if not a.numel():
        return 0.0
    if not all(torch.equal(special(a), special(b)) for special in (torch.isnan, torch.isposinf, torch.isneginf)):
        return math.inf
    a, b = (t.nan_to_num(0, 0, 0) for t in (a, b))
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item()


def assert_same(ours, theirs, dtype=torch.float64):
    """Two nests of tensors agree to SAME[dtype]."""
    ours, theirs = torch.utils._pytree.tree_leaves(ours), torch.utils._pytree.tree_leaves(theirs)
    assert len(ours) == len(theirs)
    for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert (a is None) == (b is None), f"result {place} is {a} instead of {b}"
        if isinstance(b, torch.Tensor):
            assert distance(a, b) <= SAME[dtype], f"result {place} is off by {distance(a, b):.2g}"
