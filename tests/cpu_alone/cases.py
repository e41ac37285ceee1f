"""Layers that the CPU kernels run without PyTorch, and their expected results."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from cuda_on_cpu import cases
from cuda_on_cpu.layer import CELLS, Call, inputs, outputs, states_of, steps_of
from tolerances import ALONE, ROUNDED, distance
from torch import Tensor

from .kernels import KernelError, Kernels, in_a_fresh_thread

THREADS = [(1, 0), (2, 1), (3, 2), (-3, 0)]  # and the seed of their pauses


@dataclass(frozen=True)
class Case(cases.Case):
    """tier is an instruction set of kernels.h."""

    scale: float = 1  # of x
    special: float = 0  # in the place of x's first number
    scale_h: float = 1  # of h0

    def given(self) -> dict[str, Tensor]:
        given = super().given()
        x = given["x"].detach().double().mul(self.scale).to(self.storage)
        if self.special:
            x.flatten()[0] = self.special
        given |= {"x": x.requires_grad_(), "h0": given["h0"].detach().mul(self.scale_h).requires_grad_()}
        without = "reset_" if "zeros" in self.batch else "-"  # a reset to zeros
        return {name: t for name, t in given.items() if not name.startswith(without)}

    @property
    def is_rounded_once(self) -> bool:
        """Are all results correctly rounded exact sums?"""
        return self.mode == "RNN_RELU" and self.T == 1 and bool(self.absent)


@dataclass
class Prepared:
    forward: Call
    grads: dict[str, Tensor]
    exact: dict[str, Tensor]  # results in float64


@functools.cache
def prepare(case: Case) -> Prepared:
    given = case.given()
    x, (sizes, arrays) = given["x"].detach(), inputs(case.mode, given)
    _, _, R, _, H, _, D = sizes
    results = outputs(case.mode, x, sizes)
    grads = case.gradients(results)
    exact = {name: t.detach() for name, t in cases.exact(case.mode, given, grads).items()}
    results["saved"] = x.new_empty(D, R, CELLS[case.mode].saved, H)
    if case.P:
        results["hidden"] = x.new_empty(D, R, H)
    forward = Call(case.mode, case.tier, False, False, x.dtype, sizes, arrays | results, list(results))
    return Prepared(forward, grads, exact)


def fresh(call: Call, without: tuple[str, ...] = ()) -> Call:
    """The same with nothing filled in, and without some of the results."""
    results = [name for name in call.results if name not in without]
    arrays = {name: t for name, t in call.arrays.items() if name not in without}
    arrays |= {name: torch.full_like(t, torch.nan) for name, t in arrays.items() if name in results}
    return replace(call, arrays=arrays, results=results)


def backward_of(forward: Call, prepared: Prepared) -> Call:
    results = {name: t for name, t in prepared.exact.items() if name.startswith("d")}
    results = {name: t.to(forward.dtype) for name, t in results.items()}
    arrays = {name: t for name, t in forward.arrays.items() if not name.endswith("_n")}
    return replace(forward, backward=True, arrays=arrays | prepared.grads | results, results=list(results))


def one_step(call: Call) -> Call:
    """As a cell calls: h_n is y."""
    call = fresh(call, ("h_n", "saved", "hidden"))
    return replace(call, arrays=call.arrays | {"h_n": call.arrays["y"]})


def some_rows(call: Call, rows: int) -> Call:
    """The call for the first rows of a batch that is not packed."""
    T, N, R, *widths, D = call.sizes
    arrays, states = dict(call.arrays), states_of(call.mode)
    for name in ("x", "y", *(f"{state}0" for state in states)):
        arrays[name] = arrays[name][:, :rows].contiguous()
    arrays["offsets"] = torch.arange(T + 1) * rows
    arrays |= {f"{state}_n": torch.empty_like(arrays[f"{state}0"]) for state in states}
    call = replace(call, sizes=[T, rows, T * rows, *widths, D], arrays=arrays)
    return fresh(call, ("saved", "hidden", *map(steps_of, states[1:])))


def changed(what: str, one: Call, other: Call) -> list[str]:
    """The results of `one` that are not bitwise equal to those of `other`."""
    a, b = ([call.arrays[name].view(torch.uint8) for name in one.results] for call in (one, other))
    return [f"{what}, {name} is another" for name, x, y in zip(one.results, a, b, strict=True) if not torch.equal(x, y)]


def wrong(case: Case, calls: list[Call], exact: dict[str, Tensor]) -> list[str]:
    complaints = [
        f"{name} is not whole"
        for name, ours in ((name, calls[0].arrays[name]) for name in ("saved", "hidden") if name in calls[0].results)
        if not case.special and ours.isnan().any()
    ]
    for name, ours in ((name, call.arrays[name]) for call in calls for name in call.results if name in exact):
        if case.is_rounded_once:
            if not is_rounded_right(ours, exact[name], case.H == case.I == 1 and not name.startswith("dw")):
                complaints.append(f"{name} is not rounded right")
        elif not distance(ours, exact[name]) <= ALONE[case.dtype] * max(1, case.scale / 10):
            complaints.append(f"{name} is off by {distance(ours, exact[name]):.3g}")
    return complaints


def is_rounded_right(ours: Tensor, exact: Tensor, product: bool) -> bool:
    """Is it a correct rounding of a product, which is exact, or of a sum?"""
    slack = 0.0 if product or not exact.numel() else ROUNDED * exact.nan_to_num(0, 0, 0).abs().max()
    low, high = (exact - slack).to(ours.dtype), (exact + slack).to(ours.dtype)
    return bool(((low <= ours) & (ours <= high) | (ours.isnan() & exact.isnan())).all())


def run(case: Case, kernels: Kernels) -> list[str]:
    """Returns what is wrong: values, or bits with fewer results or other numbers of threads."""
    try:
        return in_a_fresh_thread(check, case, kernels)
    except KernelError as error:
        return [str(error)]


def check(case: Case, kernels: Kernels) -> list[str]:
    prepared = prepare(case)
    forward = kernels.run(fresh(prepared.forward))
    backward = kernels.run(fresh(backward_of(forward, prepared)))
    if complaints := wrong(case, [forward, backward], prepared.exact):
        return complaints
    for threads, seed in THREADS:
        what = f"with {threads} threads"
        complaints += changed(what, kernels.run(fresh(forward), threads, seed), forward)
        complaints += changed(what, kernels.run(fresh(backward), threads, seed), backward)
    less = kernels.run(fresh(forward, ("saved", "hidden", *map(steps_of, states_of(case.mode)[1:]))))
    complaints += changed("without gradients", less, forward)
    weights = [name for name in backward.results if name[-1].isdigit() and name[:2] in ("dw", "db")]
    for unwanted in (["dx", *weights[::2]], weights[1::2], weights):
        if unwanted != backward.results:
            complaints += changed(f"without {unwanted}", kernels.run(fresh(backward, tuple(unwanted)), 2), backward)
    complaints += check_other_sizes(case, kernels, forward)
    if "kept" in case.batch and not torch.equal(forward.arrays["h_n"], forward.arrays["h0"]):
        complaints.append("h_n is not the very h0")
    return complaints


def check_other_sizes(case: Case, kernels: Kernels, forward: Call) -> list[str]:
    """Are the bits of a single step, and of a part of the rows, the same?"""
    complaints, rows = [], case.N // 2
    if case.T == 1 and case.batch == "padded" and case.D == 1:
        complaints += changed("of one step", kernels.run(one_step(forward)), forward)
    if case.batch == "padded" and rows * case.T >= 12:
        part = kernels.run(some_rows(prepare(case).forward, rows))
        expected = {name: forward.arrays[name][:, :rows].contiguous() for name in part.results}
        complaints += changed("of fewer rows", part, replace(forward, arrays=expected))
    return complaints


def calls(case: Case, kernels: Kernels) -> list[Call]:
    """A forward and a backward pass, for a replay."""
    prepared = prepare(case)
    forward = kernels.run(fresh(prepared.forward))
    return [forward, kernels.run(fresh(backward_of(forward, prepared)))]
