"""One recurrent layer on the emulated device."""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedrnn.backends.extension import _C, CellTraits, cell_traits
from fusedrnn.inputs import WEIGHTS, ScanInputs

POLICIES = ["round-robin", "reverse", "random", "priority"]
BUILT_IN = {name: cell_traits(name) for name in ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")}
OF_TESTS = {"THREE_STATES": CellTraits(3, 3, 3, 0, 0, 3, 3), "FOUR_STATES": CellTraits(3, 3, 4, 0, 0, 4, 4)}
CELLS = BUILT_IN | OF_TESTS
STATES = ("h", "c", "s2", "s3")  # in the names of arrays: see arrays.h
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# arrays with a row for every step of every row: [D, R, ...] if true, else [R, D, ...]
BY_ROWS = dict.fromkeys(("gates_x", "saved", "hidden", "dgates", "h_prev", "dh_steps"), True)
BY_ROWS |= {"reset": False, "y": False, "dy": False}
BY_ROWS |= {name: False for s in STATES for name in (f"{s}_steps", f"d{s}_steps", f"zone_{s}") if name != "dh_steps"}
FAR = 2**30 + 1  # rows
MAP_NORESERVE = 0x4000  # of Linux


def states_of(mode: str) -> tuple[str, ...]:
    return STATES[: CELLS[mode].states]


def steps_of(state: str) -> str:
    return "y" if state == "h" else f"{state}_steps"


class CallStruct(ctypes.Structure):
    """struct Call of driver.h"""

    _fields_ = [
        *((name, ctypes.c_char_p) for name in ("cell", "tier")),
        *((name, ctypes.c_int) for name in ("type", "tf32", "backward", "count")),
        ("sizes", ctypes.POINTER(ctypes.c_int64)),
        ("names", ctypes.POINTER(ctypes.c_char_p)),
        ("data", ctypes.POINTER(ctypes.c_void_p)),
    ]

    @classmethod
    def of(cls, call: Call, addresses: dict[str, int]) -> CallStruct:
        count = len(addresses)
        return cls(
            call.mode.encode(), call.tier.encode(), TYPES.index(call.dtype), call.tf32, call.backward, count,
            (ctypes.c_int64 * 7)(*call.sizes), (ctypes.c_char_p * count)(*map(str.encode, addresses)),
            (ctypes.c_void_p * count)(*addresses.values()),
        )  # fmt: skip


class EmulatorError(RuntimeError):
    pass


class Device:
    """The kernels in a library that :mod:`build` made, on an emulated device of any size."""

    def __init__(self, library: Path):
        self.library = ctypes.CDLL(str(library))
        self.library.run_layer.restype = self.library.last_plan.restype = ctypes.c_char_p
        self.resize()
        self.schedule("random", 1)

    def resize(
        self, multiprocessors: int = 132, shared_bytes: int = 232448, capability: int = 90, taken: int = 0
    ) -> None:
        self.library.set_device(multiprocessors, shared_bytes, capability, taken)

    def schedule(self, policy: str, seed: int) -> None:
        self.library.set_schedule(POLICIES.index(policy), ctypes.c_uint64(seed))

    def run(self, call: Call) -> Call:
        """Fills in the results of a call."""
        assert all(t.is_contiguous() for t in call.arrays.values())
        addresses = {name: t.data_ptr() for name, t in call.arrays.items()}
        error = self.library.run_layer(ctypes.byref(CallStruct.of(call, addresses)))
        if error:
            raise EmulatorError(error.decode())
        call.plan = self.library.last_plan().decode()
        if call.sizes[0] == 0 and not call.backward:  # no step, no kernel that would store the states
            for state in states_of(call.mode):
                call.arrays[f"{state}_n"].copy_(call.arrays[f"{state}0"])
        return call

    def cell_step(self, mode: str, backward: bool, given: list[Tensor], state: list[Tensor], planes: int):
        """One step of csrc/cells.h in double: returns the new state and ``planes`` results."""
        given, state = [t.contiguous() for t in given], [t.clone() for t in state]
        out = [torch.empty_like(state[0]) for _ in range(planes)]
        pointers = [(ctypes.c_void_p * len(ts))(*(t.data_ptr() for t in ts)) for ts in (given, state, out)]
        self.library.cell_step(mode.encode(), backward, ctypes.c_int64(state[0].numel()), *pointers)
        return state, out


@dataclass
class Call:
    """One forward or backward pass: arrays by their names in arrays.h, and the names of those it fills in."""

    mode: str
    tier: str
    tf32: bool
    backward: bool
    dtype: torch.dtype
    sizes: list[int]  # T, N, R, I, H, P, D
    arrays: dict[str, Tensor]
    results: list[str] = field(default_factory=list)
    gates_x: Tensor | None = None  # of a forward pass, which overwrites it with the saved values
    plan: str = ""

    def fresh(self) -> Call:
        """The same with nothing filled in."""
        fresh = {name: torch.full_like(self.arrays[name], torch.nan) for name in self.results}
        if self.gates_x is not None and not self.backward:
            fresh["gates_x"] = self.gates_x.clone()
            if "saved" in fresh:
                fresh["saved"] = fresh["gates_x"].view_as(self.arrays["saved"])
        return replace(self, arrays=self.arrays | fresh)

    def far(self) -> Call:
        """The same with the rows of a step so far from those of the next that 32 bits cannot count them, and with
        arrays at the oddest addresses that their elements may have. For batches that are not packed.
        """
        T, N, _, *widths = self.sizes
        call = self.fresh()
        arrays = {name: self._moved(name, t) for name, t in call.arrays.items()}
        if "saved" in self.results:
            arrays["saved"] = arrays["gates_x"]
        arrays["offsets"] = torch.arange(T + 1) * FAR
        return replace(call, sizes=[T, N, T * FAR, *widths], arrays=arrays)

    def _moved(self, name: str, t: Tensor) -> Tensor:
        if name not in BY_ROWS:
            return torch.cat([t.flatten()[:1], t.flatten()])[1:].view_as(t)
        near = self._by_steps(name, t)
        directions, T, _, width = near.shape
        count = directions * T * FAR * width + 1
        # address space without memory, but where something is written
        space = mmap.mmap(-1, count * t.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
        far = torch.frombuffer(space, dtype=t.dtype)[1:].view(directions, T, FAR, width)
        far[:, :, : near.size(2)] = near
        return far

    def _by_steps(self, name: str, t: Tensor) -> Tensor:
        T, N, *_, D = self.sizes
        return t.reshape(D if BY_ROWS[name] else 1, T, N, -1)

    def near(self, far: Call) -> Call:
        """The results of self.far() in arrays like those here."""
        N, results = self.sizes[1], {}
        for name in self.results:
            t = far.arrays[name]
            results[name] = (t[:, :, :N] if name in BY_ROWS else t).reshape(self.arrays[name].shape)
        return replace(self, arrays=self.arrays | results)

    def changed(self, other: Call) -> list[str]:
        """Names of results that are not bitwise equal to the other's."""
        bits = [[call.arrays[name].view(torch.uint8) for name in self.results] for call in (self, other)]
        return [name for name, a, b in zip(self.results, *bits, strict=True) if not torch.equal(a, b)]

    def write(self, path: Path) -> None:
        """For replay.cpp."""
        call = self.fresh()
        numbers = [TYPES.index(call.dtype), int(call.tf32), int(call.backward), *call.sizes]
        with open(path, "wb") as file:
            file.write(" ".join([call.tier or "-", call.mode, *map(str, numbers)]).encode() + b"\n")
            for name, t in call.arrays.items():
                data = t.flatten().view(torch.uint8).numpy().tobytes()
                file.write(f"{name} {len(data)}\n".encode() + data)


def scan_inputs(mode: str, given: dict[str, Tensor]) -> ScanInputs:
    """What the package calls a layer of these arrays."""
    states, directions = states_of(mode), range(given["h0"].size(0))
    weights = {kind: [given[f"{kind}{d}"] for d in directions if f"{kind}{d}" in given] for kind in WEIGHTS}
    resets = [given[f"reset_{state}"] for state in states if f"reset_{state}" in given]
    options = {name: given.get(name) for name in ("batch_sizes", "lengths", "reset", "h_mask")}
    zones = [given.get(f"zone_{state}", given.get(f"share_{state}")) for state in states]
    initial = [given[f"{state}0"] for state in states]
    return ScanInputs(given["x"], initial, **weights, reset_states=resets, **options, zones=zones)


def inputs(mode: str, given: dict[str, Tensor]) -> tuple[list[int], dict[str, Tensor]]:
    """Sizes and arrays of a call, from those of a case, which has batch_sizes in place of offsets."""
    x, (D, N, P) = given["x"], given["h0"].shape
    H = given["w_hh0"].size(0) // CELLS[mode].gates
    steps = given["batch_sizes"].tolist() if "batch_sizes" in given else [N] * x.size(0)
    arrays = {name: t.detach().contiguous() for name, t in given.items() if name != "batch_sizes"}
    arrays["offsets"] = F.pad(torch.tensor(steps, dtype=torch.int64).cumsum(0), (1, 0))
    return [len(steps), N, sum(steps), x.size(-1), H, P, D], arrays


def outputs(mode: str, x: Tensor, sizes: list[int], every_step: bool = True) -> dict[str, Tensor]:
    """Arrays for the results of a forward pass except the saved values, filled with NaN."""
    _, N, _, _, H, P, D = sizes
    results = {}
    for state in states_of(mode):
        width = P if state == "h" else H
        if every_step or state == "h":
            results[steps_of(state)] = x.new_full((*x.shape[:-1], D * width), torch.nan)
        results[f"{state}_n"] = x.new_full((D, N, width), torch.nan)
    return results


class Layer:
    """Does what csrc/torch/cuda.cpp does. Records its calls, so that they can be repeated under other schedules."""

    def __init__(self, device: Device, mode: str, given: dict[str, Tensor], tier: str = "", tf32: bool = False):
        self.device, self.mode, self.tier, self.tf32 = device, mode, tier, tf32
        self.given = {name: t.detach() for name, t in given.items()}
        self.calls: list[Call] = []

    def _run(self, backward: bool, given: dict[str, Tensor], results: dict[str, Tensor]) -> Call:
        sizes, arrays = inputs(self.mode, self.given)
        # x is projected before; of a padded batch, rows are where one expects them
        absent = {"x"} if "batch_sizes" in self.given else {"x", "offsets"}
        arrays = {name: t for name, t in arrays.items() if name not in absent and name[:-1] not in ("w_ih", "b_ih")}
        arrays |= {name: t.detach().contiguous() for name, t in given.items()}
        dtype, names = self.given["x"].dtype, list(results)
        call = Call(self.mode, self.tier, self.tf32, backward, dtype, sizes, arrays | results, names)
        if not backward:
            call.gates_x = arrays["gates_x"].clone()
        self.calls.append(self.device.run(call))
        return call

    def forward(self, training: bool = True) -> Call:
        x, (sizes, arrays) = self.given["x"].detach(), inputs(self.mode, self.given)
        _, _, R, I, H, _, D = sizes
        gates = CELLS[self.mode].gates
        planes = CELLS[self.mode].saved if training else gates
        gates_x = x.new_full((D, R, planes * H), torch.nan)
        for d in range(D):
            gates_x[d, :, : gates * H] = F.linear(x.reshape(R, I), arrays[f"w_ih{d}"], arrays.get(f"b_ih{d}"))
        results = outputs(self.mode, x, sizes, training)
        if training:
            results["saved"] = gates_x.view(D, R, planes, H)
            if "w_hr0" in arrays:
                results["hidden"] = x.new_full((D, R, H), torch.nan)
        return self._run(False, {"gates_x": gates_x}, results)

    def backward(self, forward: Call, grads: dict[str, Tensor]) -> dict[str, Tensor]:
        """The gradients of all that the layer was given."""
        x, given, (_, _, R, _, H, P, D) = self.given["x"], self.given, forward.sizes
        kept = {name: forward.arrays[name] for name in ("saved", *map(steps_of, states_of(self.mode)))}
        results = {"dgates": x.new_full((D, R, CELLS[self.mode].grads, H), torch.nan)}
        if any(name in given for name in ("batch_sizes", "lengths", "reset", "h_mask")):  # else y, shifted, will do
            results["h_prev"] = x.new_full((D, R, P), torch.nan)
        if "w_hr0" in given:
            results["dh_steps"] = x.new_full((D, R, P), torch.nan)
        of_states = [name for s in states_of(self.mode) for name in (f"{s}0", f"reset_{s}") if name in given]
        results |= {f"d{name}": torch.full_like(given[name], torch.nan) for name in of_states}
        made = self._run(True, kept | grads, results).arrays
        of_steps = [made["dgates"], made.get("h_prev"), made.get("dh_steps")]
        y, hidden = forward.arrays["y"], forward.arrays.get("hidden")
        sums = _C.sum_over_steps(scan_inputs(self.mode, given), y, hidden, *of_steps)
        names = ["x", *(f"{kind}{d}" for kind in WEIGHTS for d in range(D) if f"{kind}{d}" in given)]
        sums = zip(names, sums, strict=True)
        return {f"d{name}": made[f"d{name}"] for name in of_states} | {f"d{name}": t for name, t in sums}
