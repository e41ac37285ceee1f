"""One recurrent layer on the emulated device, with the interface of the compiled extension."""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedrnn.kernels import _C, GATES

POLICIES = ["round-robin", "reverse", "random", "priority"]
CELLS = list(GATES)  # in the order of CellKind
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# arrays with a row for every step of every row: [D, R, ...] if true, else [R, D, ...]
BY_ROWS = dict.fromkeys(("gates_x", "saved", "hidden", "dgates", "h_prev", "dh_steps"), True)
BY_ROWS |= dict.fromkeys(("y", "c_steps", "dy", "dc_steps", "reset", "zone_h", "zone_c"), False)
FAR = 2**30 + 1  # rows
MAP_NORESERVE = 0x4000  # of Linux
PLANES = {"LSTM": 4, "GRU": 4, "RNN_TANH": 1, "RNN_RELU": 1}  # saved values, and gate gradients


class EmulatorError(RuntimeError):
    pass


class Device:
    """The kernels in a library that :mod:`build` made, on a device that can be of any size."""

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
        arrays = {name: t for name, t in call.arrays.items() if t is not None}
        assert all(t.is_contiguous() for t in arrays.values())
        count = len(arrays)
        error = self.library.run_layer(
            CELLS.index(call.mode),
            TYPES.index(call.dtype),
            call.tf32,
            call.tier.encode(),
            call.backward,
            (ctypes.c_int64 * 7)(*call.sizes),
            count,
            (ctypes.c_char_p * count)(*(name.encode() for name in arrays)),
            (ctypes.c_void_p * count)(*(t.data_ptr() for t in arrays.values())),
        )
        if error:
            raise EmulatorError(error.decode())
        call.plan = self.library.last_plan().decode()
        if call.sizes[0] == 0 and not call.backward:  # no step, no kernel that would put the states down
            for state in ("h", "c"):
                if call.arrays[f"{state}_n"] is not None:
                    call.arrays[f"{state}_n"].copy_(call.arrays[f"{state}0"])
        return call

    def cell_step(self, mode: str, backward: bool, given: list[Tensor], state: list[Tensor], planes: int):
        """One step of csrc/cells.h in double: returns the new state and ``planes`` results."""
        given, state = [t.contiguous() for t in given], [t.clone() for t in state]
        out = [torch.empty_like(state[0]) for _ in range(planes)]
        pointers = [(ctypes.c_void_p * len(ts))(*(t.data_ptr() for t in ts)) for ts in (given, state, out)]
        self.library.cell_step(CELLS.index(mode), backward, ctypes.c_int64(state[0].numel()), *pointers)
        return state, out


@dataclass
class Call:
    """One forward or backward pass: arrays by their names in csrc/scan.h, and the names of those it fills in."""

    mode: str
    tier: str
    tf32: bool
    backward: bool
    dtype: torch.dtype
    sizes: list[int]  # T, N, R, I, H, P, D
    arrays: dict[str, Tensor | None]
    results: list[str] = field(default_factory=list)
    gates_x: Tensor | None = None  # of a forward pass: what saved values came in the place of
    plan: str = ""

    def fresh(self) -> Call:
        """The same with nothing filled in."""
        fresh = {name: torch.full_like(self.arrays[name], torch.nan) for name in self.results}
        if not self.backward:
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
        arrays = {name: self._moved(name, t) for name, t in call.arrays.items() if t is not None}
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
        """Names of results whose bits are not the other's."""
        bits = [[call.arrays[name].view(torch.uint8) for name in self.results] for call in (self, other)]
        return [name for name, a, b in zip(self.results, *bits, strict=True) if not torch.equal(a, b)]

    def write(self, path: Path) -> None:
        """For replay.cpp."""
        call = self.fresh()
        cell, dtype = CELLS.index(call.mode), TYPES.index(call.dtype)
        numbers = [cell, dtype, int(call.tf32), int(call.backward), *call.sizes]
        with open(path, "wb") as file:
            file.write(" ".join([call.tier or "-", *map(str, numbers)]).encode() + b"\n")
            for name, t in call.arrays.items():
                if t is not None:
                    data = t.flatten().view(torch.uint8).numpy().tobytes()
                    file.write(f"{name} {len(data)}\n".encode() + data)


def inputs(mode: str, args: tuple, weights: list[Tensor]) -> tuple[list[int], dict[str, Tensor | None]]:
    """Sizes and arrays of a call, from the arguments that the compiled extension gets."""
    x, h0, c0, batch_sizes, lengths, reset, reset_h, reset_c, h_mask, zone_h, zone_c = args
    D, N, P = h0.shape
    H = weights[0].size(0) // GATES[mode]
    steps = [N] * x.size(0) if batch_sizes is None else batch_sizes.tolist()
    arrays = {"x": x, "h0": h0, "c0": c0, "reset_h": reset_h, "reset_c": reset_c, "lengths": lengths, "reset": reset}
    arrays |= {"h_mask": h_mask, "offsets": F.pad(torch.tensor(steps, dtype=torch.int64).cumsum(0), (1, 0))}
    for state, zone in (("h", zone_h), ("c", zone_c)):
        if zone is not None:
            arrays["zone_" + state if zone.dim() else "share_" + state] = zone
    count = len(weights) // D
    for d in range(D):
        w = weights[d * count : (d + 1) * count]
        arrays |= {f"w_ih{d}": w[0], f"w_hh{d}": w[1]}
        arrays |= {f"b_ih{d}": w[2] if count >= 4 else None, f"b_hh{d}": w[3] if count >= 4 else None}
        arrays[f"w_hr{d}"] = w[-1] if count % 2 else None
    arrays = {name: None if t is None else t.detach().contiguous() for name, t in arrays.items()}
    return [len(steps), N, sum(steps), x.size(-1), H, P, D], arrays


class Extension:
    """Stands in for ``fusedrnn._C``. Keeps its calls, so that they can be made again under other schedules."""

    def __init__(self, device: Device, tier: str = "", tf32: bool = False):
        self.device, self.tier, self.tf32 = device, tier, tf32
        self.calls: list[Call] = []

    def _call(self, backward, mode, args, weights, **given: Tensor | None) -> Call:
        sizes, arrays = inputs(mode, args, weights)
        del arrays["x"]  # it is projected before
        for d in range(sizes[-1]):
            del arrays[f"w_ih{d}"], arrays[f"b_ih{d}"]
        if args[3] is None:  # rows are where one expects them
            del arrays["offsets"]
        given = {name: None if t is None else t.detach().contiguous() for name, t in given.items()}
        return Call(mode, self.tier, self.tf32, backward, args[0].dtype, sizes, given | arrays)

    def _run(self, call: Call, results: dict[str, Tensor | None]) -> list[Tensor | None]:
        call.arrays |= results
        call.results = [name for name, t in results.items() if t is not None]
        self.calls.append(self.device.run(call))
        return list(results.values())

    def scan_forward(self, mode, training, c_sequence, args, weights):
        x = args[0]
        call = self._call(False, mode, args, weights)
        T, N, R, I, H, P, D = call.sizes
        lstm, sequence = call.arrays["c0"] is not None, x.shape[:-1]
        planes = PLANES[mode] if training else GATES[mode]
        gates_x = x.new_full((D, R, planes * H), torch.nan)
        count = len(weights) // D
        for d in range(D):
            w_ih, b_ih = weights[d * count], weights[d * count + 2] if count >= 4 else None
            gates_x[d, :, : GATES[mode] * H] = F.linear(x.detach().reshape(R, I), w_ih, b_ih).detach()
        call.gates_x, call.arrays["gates_x"] = gates_x.clone(), gates_x

        def empty(*size, wanted=True):
            return x.new_full(size, torch.nan) if wanted else None

        return self._run(
            call,
            {
                "y": empty(*sequence, D * P),
                "h_n": empty(D, N, P),
                "c_n": empty(D, N, H, wanted=lstm),
                "c_steps": empty(*sequence, D * H, wanted=lstm and (training or c_sequence)),
                "saved": gates_x.view(D, R, planes, H) if training else None,
                "hidden": empty(D, R, H, wanted=training and H != P),
            },
        )

    def scan_backward(self, mode, args, weights, outputs, grads, wanted):
        x, h0 = args[:2]
        y, _, _, hidden = outputs
        given = dict(zip(("y", "c_steps", "saved"), outputs, strict=False))
        given |= zip(("dy", "dh_n", "dc_n", "dc_steps"), grads, strict=True)
        call = self._call(True, mode, args, weights, **given)
        T, N, R, I, H, P, D = call.sizes

        def empty(*size):
            return x.new_full(size, torch.nan)

        def like(name):
            return None if call.arrays[name] is None else torch.full_like(call.arrays[name], torch.nan)

        shifted = all(
            call.arrays.get(name) is None for name in ("offsets", "lengths", "reset", "h_mask")
        )  # as in bindings.cpp
        *of_steps, dh0, dc0, dreset_h, dreset_c = self._run(
            call,
            {
                "dgates": empty(D, R, PLANES[mode], H),
                "h_prev": None if shifted else empty(D, R, P),
                "dh_steps": empty(D, R, P) if H != P else None,
                "dh0": like("h0"),
                "dc0": like("c0"),
                "dreset_h": like("reset_h"),
                "dreset_c": like("reset_c"),
            },
        )
        sums = _C.sum_over_steps(x, h0, y, weights, hidden, [wanted[0], *wanted[5:]], *of_steps)
        states = [t if want else None for t, want in zip((dh0, dc0, dreset_h, dreset_c), wanted[1:5], strict=True)]
        return [sums[0], *states, *sums[1:]]
