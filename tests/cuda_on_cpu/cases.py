"""Layers that the kernels run on the emulator, and what must come out of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tolerances import EXACT, distance

from fusedrnn import reference

from . import build
from .layer import GATES, POLICIES, Device, EmulatorError, Extension
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
    absent: str = ""  # gradients that do not come: of dy, dh_n, dc_n, dc_steps
    multiprocessors: int = 132

    @property
    def storage(self) -> torch.dtype:
        return torch.float32 if self.dtype == "tf32" else getattr(torch, self.dtype)

    def arguments(self) -> tuple:
        """Those of :func:`fusedrnn.scan.scan`, the same every time."""
        random = torch.Generator().manual_seed(0)

        def leaf(*size, scale=1.0):
            return torch.randn(size, dtype=torch.float64, generator=random).mul(scale).to(self.storage).requires_grad_()

        P, G, lstm = self.P or self.H, GATES[self.mode], self.mode == "LSTM"
        weights = []
        for _ in range(self.D):
            weights += [leaf(G * self.H, self.I, scale=0.5), leaf(G * self.H, P, scale=P**-0.5)]
            weights += [leaf(G * self.H), leaf(G * self.H)] if self.bias else []
            weights += [leaf(P, self.H, scale=self.H**-0.5)] if self.P else []
        first = self.N - 3 * ("fewer" in self.batch)
        sizes = [max(1, first - 2 * t) for t in range(self.T)] if "packed" in self.batch else None
        lengths = torch.randint(self.T + 1, (self.N,), generator=random) if "lengths" in self.batch else None
        shape = (sum(sizes),) if sizes else (self.T, self.N)
        reset = "reset" in self.batch
        return (
            self.mode,
            leaf(*shape, self.I),
            leaf(self.D, self.N, P),
            leaf(self.D, self.N, self.H) if lstm else None,
            weights,
            torch.tensor(sizes) if sizes else None,
            lengths,
            torch.rand(shape, generator=random) < 0.4 if reset else None,
            leaf(self.D, self.N, P) if reset else None,
            leaf(self.D, self.N, self.H) if reset and lstm else None,
            *self._regularisers(shape, random),
        )

    def gradients(self, results: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Those of the outputs: the same every time, too."""
        random = torch.Generator().manual_seed(1)
        return [
            None
            if t is None or name in self.absent.split()
            else torch.randn(t.shape, dtype=torch.float64, generator=random).to(self.storage)
            for name, t in zip(["dy", "dh_n", "dc_n", "dc_steps"], results, strict=True)
        ]

    def _regularisers(self, shape: tuple, random: torch.Generator) -> tuple:
        """h_mask, zone_h and zone_c: units that keep their state, or the share of it that all keep."""
        P, lstm = self.P or self.H, self.mode == "LSTM"
        h_mask = torch.rand(self.D, self.N, P, dtype=torch.float64, generator=random).mul(2).sub(0.5).relu()
        if "masks" in self.batch:
            zones = [torch.rand(*shape, self.D * width, generator=random) < 0.4 for width in (P, self.H)]
        elif "shares" in self.batch or "kept" in self.batch:
            zones = [torch.tensor(1.0 if "kept" in self.batch else z, dtype=torch.float64) for z in (0.3, 0.6)]
        else:
            return None, None, None
        return h_mask.to(self.storage), zones[0], zones[1] if lstm else None


def make_calls(case: Case, device: Device, args: tuple) -> tuple[Extension, list[str]]:
    """Runs a case forward and backward; returns the calls that were made and what is wrong with their results."""
    mode, x, h0, c0, weights, *masks = args
    extension = Extension(device, case.tier, case.dtype == "tf32")
    forward = extension.scan_forward(mode, True, True, (x, h0, c0, *masks), weights)
    y, h_n, c_n, c_steps, saved, hidden = forward
    grads = case.gradients([y, h_n, c_n, c_steps])
    wanted = [t is not None for t in (x, h0, c0, *masks[3:5], *weights)]
    gradients = extension.scan_backward(mode, (x, h0, c0, *masks), weights, (y, c_steps, saved, hidden), grads, wanted)
    if case.dtype not in EXACT:
        first, second = extension.calls
        return extension, Check(first, device).forward() + Check(second, device).backward()
    return extension, compare(case, args, forward, grads, gradients)


def exact(args: tuple, grads: list) -> tuple[list, list]:
    """The reference's outputs in float64, and its gradients of all inputs and weights that there are."""
    mode, x, h0, c0, weights, *masks = args

    def wide(t):
        return t.detach().double().requires_grad_() if isinstance(t, torch.Tensor) and t.is_floating_point() else t

    x, h0, c0, *masks = map(wide, (x, h0, c0, *masks))
    weights = [wide(w) for w in weights]
    outputs = reference.scan(mode, x, h0, c0, weights, *masks)
    pairs = [(t, g.double()) for t, g in zip(outputs, grads, strict=True) if g is not None and t.requires_grad]
    inputs = [t for t in (x, h0, c0, *masks[3:5], *weights) if t is not None]
    derived = torch.autograd.grad([t for t, _ in pairs], inputs, [g for _, g in pairs], allow_unused=True)
    return list(outputs), [torch.zeros_like(t) if g is None else g for t, g in zip(inputs, derived, strict=True)]


def compare(case: Case, args: tuple, forward: list, grads: list, gradients: list) -> list[str]:
    """Outputs and gradients of everything beside those of the reference in float64."""
    outputs, derived = exact(args, grads)
    names = ["y", "h_n", "c_n", "c_steps", *(f"gradient {i}" for i in range(len(derived)))]
    ours = [*forward[:4], *(g for g in gradients if g is not None)]
    complaints = []
    for name, a, b in zip(names, ours, [*outputs, *derived], strict=True):
        if a is not None and not distance(a, b) <= EXACT[case.dtype]:
            complaints.append(f"{name} is off by {distance(a, b):.3g}")
    return complaints


def run(case: Case, device: Device) -> list[str]:
    """Returns what is wrong: with the values, with running without gradients, with the bits of another schedule."""
    device.resize(case.multiprocessors)
    device.schedule(*SCHEDULES[0])
    args = case.arguments()
    try:
        extension, complaints = make_calls(case, device, args)
        mode, x, h0, c0, weights, *masks = args
        inference = Extension(device, case.tier, case.dtype == "tf32")
        inference.scan_forward(mode, False, False, (x, h0, c0, *masks), weights)
        forward = inference.calls[0]
        complaints += [f"without gradients, {name} is another" for name in forward.changed(extension.calls[0])]
        if "kept" in case.batch and not torch.equal(forward.arrays["h_n"], forward.arrays["h0"]):
            complaints.append("h_n is not the very h0")
        if "far" in case.batch:
            for call in extension.calls:
                again = call.near(device.run(call.far()))
                complaints += [f"{name} is another beyond 32 bits" for name in call.changed(again)]
        for schedule in SCHEDULES[1:]:
            device.schedule(*schedule)
            for call in extension.calls:
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
