"""Layers that the kernels run on the emulator, and their expected results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import cells
import torch
from tolerances import EXACT, distance
from torch import Tensor

from fusedrnn.backends import reference

from . import build
from .layer import CELLS, POLICIES, Call, Device, EmulatorError, Layer, scan_inputs, states_of, steps_of
from .rounded import Check

SCHEDULES = [(policy, seed) for policy in POLICIES for seed in (1, 2, 3)]


@dataclass(frozen=True)
class Case:
    mode: str
    tier: str  # "": the plan's choice
    dtype: str  # of torch, or tf32
    # packed (fewer: rows than states), lengths, reset, or all that go together; of zoneout masks, shares or kept; far:
    # also as Call.far()
    batch: str = "padded"
    D: int = 1
    T: int = 4
    N: int = 5
    I: int = 3
    H: int = 20
    P: int = 0  # 0: no projection
    bias: bool = True
    absent: str = ""  # gradients that do not come: of dy, dh_n, dc_n, dc_steps, ...
    multiprocessors: int = 132

    @property
    def storage(self) -> torch.dtype:
        return torch.float32 if self.dtype == "tf32" else getattr(torch, self.dtype)

    def given(self) -> dict[str, Tensor]:
        """The arguments of a layer, by the names of arrays.h except batch_sizes; the same every time."""
        random = torch.Generator().manual_seed(0)

        def leaf(*size, scale=1.0):
            return torch.randn(size, dtype=torch.float64, generator=random).mul(scale).to(self.storage).requires_grad_()

        P, G, states = self.P or self.H, CELLS[self.mode].gates, states_of(self.mode)
        width = {state: P if state == "h" else self.H for state in states}
        given = {}
        for d in range(self.D):
            given[f"w_ih{d}"] = leaf(G * self.H, self.I, scale=0.5)
            given[f"w_hh{d}"] = leaf(G * self.H, P, scale=P**-0.5)
            if self.bias:
                given[f"b_ih{d}"], given[f"b_hh{d}"] = leaf(G * self.H), leaf(G * self.H)
            if self.P:
                given[f"w_hr{d}"] = leaf(P, self.H, scale=self.H**-0.5)
        shape = (self.T, self.N)
        if "packed" in self.batch:
            first = self.N - 3 * ("fewer" in self.batch)
            given["batch_sizes"] = torch.tensor([max(1, first - 2 * t) for t in range(self.T)])
            shape = (int(given["batch_sizes"].sum()),)
        if "lengths" in self.batch:
            given["lengths"] = torch.randint(self.T + 1, (self.N,), generator=random)
        given["x"] = leaf(*shape, self.I)
        given |= {f"{state}0": leaf(self.D, self.N, width[state]) for state in states}
        if "reset" in self.batch:
            given["reset"] = torch.rand(shape, generator=random) < 0.4
            given |= {f"reset_{state}": leaf(self.D, self.N, width[state]) for state in states}
        return given | self._regularisers(shape, width, random)

    def gradients(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Those of the outputs: the same every time, too."""
        random = torch.Generator().manual_seed(1)
        return {
            f"d{name}": torch.randn(t.shape, dtype=torch.float64, generator=random).to(self.storage)
            for name, t in outputs.items()
            if f"d{name}" not in self.absent.split()
        }

    def _regularisers(self, shape: tuple, width: dict[str, int], random: torch.Generator) -> dict[str, Tensor]:
        """h_mask, and by state the units that keep it, or the share of it that all keep."""
        h_mask = torch.rand(self.D, self.N, width["h"], dtype=torch.float64, generator=random).mul(2).sub(0.5).relu()
        given = {"h_mask": h_mask.to(self.storage)}
        if "masks" in self.batch:
            masks = {state: torch.rand(*shape, self.D * size, generator=random) < 0.4 for state, size in width.items()}
            return given | {f"zone_{state}": mask for state, mask in masks.items()}
        if "shares" not in self.batch and "kept" not in self.batch:
            return {}
        shares = [1.0] * 4 if "kept" in self.batch else [0.3, 0.6, 0.2, 0.8]
        shares = zip(width, shares, strict=False)
        return given | {f"share_{state}": torch.tensor(share, dtype=torch.float64) for state, share in shares}


def make_calls(case: Case, device: Device) -> tuple[list[Call], list[str]]:
    """Runs a case forward and backward; returns the calls and the errors of their results."""
    given = case.given()
    layer = Layer(device, case.mode, given, case.tier, case.dtype == "tf32")
    forward = layer.forward()
    outputs = {name: forward.arrays[name] for name in forward.results if name not in ("saved", "hidden")}
    grads = case.gradients(outputs)
    ours = outputs | layer.backward(forward, grads)
    if case.dtype not in EXACT:
        first, second = layer.calls
        return layer.calls, Check(first, device).forward() + Check(second, device).backward()
    theirs = exact(case.mode, given, grads)
    assert theirs.keys() == ours.keys()
    errors = {name: distance(t, theirs[name]) for name, t in ours.items()}
    bound = EXACT[case.dtype]
    return layer.calls, [f"{name} is off by {error:.3g}" for name, error in errors.items() if not error <= bound]


def scan(mode: str, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of a layer in plain PyTorch."""
    with mock.patch.dict(reference.CELLS, cells.CELLS):
        steps, last = reference.scan(mode, scan_inputs(mode, given))
    results = zip(states_of(mode), steps, last, strict=True)
    return {name: t for s, after, end in results for name, t in ((steps_of(s), after), (f"{s}_n", end))}


def exact(mode: str, given: dict[str, Tensor], grads: dict[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of :func:`scan` in float64, and the gradients of all that it is given."""
    given = {name: t.detach().double().requires_grad_() if t.requires_grad else t for name, t in given.items()}
    outputs = scan(mode, {name: t.double() if name == "h_mask" else t for name, t in given.items()})
    pairs = [(outputs[name[1:]], grad.double()) for name, grad in grads.items() if outputs[name[1:]].requires_grad]
    inputs = {name: t for name, t in given.items() if t.requires_grad}
    derived = torch.autograd.grad(
        [t for t, _ in pairs], list(inputs.values()), [grad for _, grad in pairs], allow_unused=True
    )
    derived = zip(inputs.items(), derived, strict=True)
    return outputs | {f"d{name}": torch.zeros_like(t) if grad is None else grad for (name, t), grad in derived}


def run(case: Case, device: Device) -> list[str]:
    """Returns what is wrong: with the values, with running without gradients, with the bits of another schedule."""
    device.resize(case.multiprocessors)
    device.schedule(*SCHEDULES[0])
    try:
        calls, complaints = make_calls(case, device)
        forward = Layer(device, case.mode, case.given(), case.tier, case.dtype == "tf32").forward(training=False)
        complaints += [f"without gradients, {name} is another" for name in forward.changed(calls[0])]
        if "kept" in case.batch and not torch.equal(forward.arrays["h_n"], forward.arrays["h0"]):
            complaints.append("h_n is not the very h0")
        if "far" in case.batch:
            for call in calls:
                again = call.near(device.run(call.far()))
                complaints += [f"{name} is another beyond 32 bits" for name in call.changed(again)]
        for schedule in SCHEDULES[1:]:
            device.schedule(*schedule)
            for call in calls:
                again = device.run(call.fresh())
                complaints += [f"{name} is another under {schedule}" for name in call.changed(again)]
    except EmulatorError as error:
        return [str(error)]
    return complaints


def library(csrc: Path = build.CSRC, types: tuple[str, ...] = build.TYPES) -> Path:
    """The kernels of these types, with what :class:`layer.Device` calls."""
    return build.kernels("kernels.so", (build.HERE / "driver.cpp",), "plain", csrc, types)


def replay(mode: str, csrc: Path = build.CSRC, types: tuple[str, ...] = build.TYPES) -> Path:
    """The kernels in a program, with a sanitizer: see replay.cpp."""
    return build.kernels("replay", (build.HERE / "driver.cpp", build.HERE / "replay.cpp"), mode, csrc, types)
