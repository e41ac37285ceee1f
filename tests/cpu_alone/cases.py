"""Layers that the CPU kernels run alone, and what must come out of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from cuda_on_cpu import cases
from cuda_on_cpu.layer import PLANES, Call, inputs
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

    def arguments(self) -> tuple:
        mode, x, h0, *others = super().arguments()
        x, h0 = x.detach().double().mul(self.scale).to(self.storage), h0.detach().mul(self.scale_h)
        if "zeros" in self.batch:  # behind a reset
            others[5:7] = None, None
        if self.special:
            x.flatten()[0] = self.special
        return mode, x.requires_grad_(), h0.requires_grad_(), *others

    @property
    def is_rounded_once(self) -> bool:
        """Are all results right roundings of exact sums?"""
        return self.mode == "RNN_RELU" and self.T == 1 and bool(self.absent)


@dataclass
class Prepared:
    forward: Call
    grads: dict[str, Tensor]
    exact: dict[str, Tensor]  # results in float64


@functools.cache
def prepare(case: Case) -> Prepared:
    args = case.arguments()
    mode, x, h0, c0, weights, *masks = args
    sizes, arrays = inputs(mode, (x, h0, c0, *masks), weights)
    T, N, R, I, H, P, D = sizes
    grads = case.gradients(list(cases.reference.scan(mode, x, h0, c0, weights, *masks)))
    outputs, derived = cases.exact(args, grads)
    names = ["dx", "dh0", *(["dc0"] if c0 is not None else [])]
    names += [f"dreset_{state}" for state in "hc" if arrays[f"reset_{state}"] is not None]
    kinds = ["dw_ih", "dw_hh", *(["db_ih", "db_hh"] if case.bias else []), *(["dw_hr"] if case.P else [])]
    names += [f"{kind}{d}" for d in range(D) for kind in kinds]
    exact = dict(zip(("y", "h_n", "c_n", "c_steps"), outputs, strict=True)) | dict(zip(names, derived, strict=True))
    exact = {name: t.detach() for name, t in exact.items() if t is not None}
    results = {name: x.new_empty(t.shape) for name, t in exact.items() if name in ("y", "h_n", "c_n", "c_steps")}
    results["saved"] = x.new_empty(D, R, PLANES[mode], H)
    if case.P:
        results["hidden"] = x.new_empty(D, R, H)
    forward = Call(mode, case.tier, False, False, x.dtype, sizes, arrays | results, list(results))
    given = dict(zip(("dy", "dh_n", "dc_n", "dc_steps"), grads, strict=True))
    return Prepared(forward, given, exact)


def fresh(call: Call, without: tuple[str, ...] = ()) -> Call:
    """The same with nothing filled in, and without some of the results."""
    results = [name for name in call.results if name not in without]
    arrays = {name: t for name, t in call.arrays.items() if name not in without}
    arrays |= {name: torch.full_like(t, torch.nan) for name, t in arrays.items() if name in results}
    return replace(call, arrays={name: t for name, t in arrays.items() if t is not None}, results=results)


def backward_of(forward: Call, prepared: Prepared) -> Call:
    results = {name: t for name, t in prepared.exact.items() if name.startswith("d")}
    results = {name: t.to(forward.dtype) for name, t in results.items()}
    arrays = {name: t for name, t in forward.arrays.items() if name not in ("h_n", "c_n")}
    return replace(forward, backward=True, arrays=arrays | prepared.grads | results, results=list(results))


def one_step(call: Call) -> Call:
    """As a cell calls: h_n is y."""
    call = fresh(call, ("h_n", "saved", "hidden"))
    return replace(call, arrays=call.arrays | {"h_n": call.arrays["y"]})


def some_rows(call: Call, rows: int) -> Call:
    """The call for the first rows of a batch that is not packed."""
    T, N, R, *widths, D = call.sizes
    arrays = dict(call.arrays)
    for name in ("h0", "c0"):
        if arrays[name] is not None:
            arrays[name] = arrays[name][:, :rows].contiguous()
    arrays["x"] = arrays["x"][:, :rows].contiguous()
    arrays["offsets"] = torch.arange(T + 1) * rows
    arrays["y"], arrays["h_n"] = arrays["y"][:, :rows].contiguous(), torch.empty_like(arrays["h0"])
    if arrays["c0"] is not None:
        arrays["c_n"] = torch.empty_like(arrays["c0"])
    call = replace(call, sizes=[T, rows, T * rows, *widths, D], arrays=arrays)
    return fresh(call, ("saved", "hidden", "c_steps"))


def changed(what: str, one: Call, other: Call) -> list[str]:
    """Results of `one` whose bits are not those of `other`."""
    a, b = ([call.arrays[name].view(torch.uint8) for name in one.results] for call in (one, other))
    return [f"{what}, {name} is another" for name, x, y in zip(one.results, a, b, strict=True) if not torch.equal(x, y)]


def wrong(case: Case, calls: list[Call], exact: dict[str, Tensor]) -> list[str]:
    complaints = [
        f"{name} is not whole"
        for name, found in ((name, calls[0].arrays[name]) for name in ("saved", "hidden") if name in calls[0].results)
        if not case.special and found.isnan().any()
    ]
    for name, found in ((name, call.arrays[name]) for call in calls for name in call.results if name in exact):
        if case.is_rounded_once:
            if not is_rounded_right(found, exact[name], case.H == case.I == 1 and not name.startswith("dw")):
                complaints.append(f"{name} is not rounded right")
        elif not distance(found, exact[name]) <= ALONE[case.dtype] * max(1, case.scale / 10):
            complaints.append(f"{name} is off by {distance(found, exact[name]):.3g}")
    return complaints


def is_rounded_right(found: Tensor, exact: Tensor, product: bool) -> bool:
    """Of a product, which has no error before it is rounded, or of a sum of some."""
    slack = 0.0 if product or not exact.numel() else ROUNDED * exact.nan_to_num(0, 0, 0).abs().max()
    low, high = (exact - slack).to(found.dtype), (exact + slack).to(found.dtype)
    return bool(((low <= found) & (found <= high) | (found.isnan() & exact.isnan())).all())


def run(case: Case, kernels: Kernels) -> list[str]:
    """Returns what is wrong: with the values, or with the bits where less is wanted or others take part."""
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
    less = kernels.run(fresh(forward, ("c_steps", "saved", "hidden")))
    complaints += changed("without gradients", less, forward)
    weights = [name for name in backward.results if name[-1].isdigit() and name[:2] in ("dw", "db")]
    weights = [name for name in weights if name not in ("dh0", "dc0")]
    for unwanted in (["dx", *weights[::2]], weights[1::2], weights):
        if unwanted != backward.results:
            complaints += changed(f"without {unwanted}", kernels.run(fresh(backward, tuple(unwanted)), 2), backward)
    if case.T == 1 and case.batch == "padded" and case.D == 1:
        complaints += changed("of one step", kernels.run(one_step(forward)), forward)
    rows = case.N // 2
    if case.batch == "padded" and rows * case.T >= 12:
        part = kernels.run(some_rows(prepared.forward, rows))
        own = {name: forward.arrays[name][:, :rows].contiguous() for name in part.results}
        complaints += changed("of fewer rows", part, replace(forward, arrays=own))
    if "kept" in case.batch and not torch.equal(forward.arrays["h_n"], forward.arrays["h0"]):
        complaints.append("h_n is not the very h0")
    return complaints


def calls(case: Case, kernels: Kernels) -> list[Call]:
    """A forward and a backward pass, for a replay."""
    prepared = prepare(case)
    forward = kernels.run(fresh(prepared.forward))
    return [forward, kernels.run(fresh(backward_of(forward, prepared)))]
