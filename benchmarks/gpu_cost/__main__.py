"""Estimates what one step of the CUDA kernels costs on an H100, from their machine code: no GPU is needed.

    make gpu-cost                 the table, and what changed since benchmarks/gpu_cost/estimates.json
    make gpu-cost ARGS=--write    also writes that file
    python -m benchmarks.gpu_cost --tier block --cell LSTM --dtype bfloat16 --waits

needs nvcc and nvdisasm (pip install nvidia-cuda-nvdisasm), and no torch.

How: nvcc compiles csrc/cuda for sm_90. The drivers run beside a CUDA runtime that launches nothing and hands over the
kernels and arguments of a layer of 4 and of 6 steps. The first thread's way through both is followed in the machine
code, with the real arguments, and the clock of its warp by the stall counts and scoreboards that are in each
instruction. Half the difference is one step.

These numbers are estimates. Assumed are 1.75 GHz; published latencies (walk.py lists them: shared memory 29, L2 263,
DRAM 650, tanh 22 cycles ...); 300 cycles until a store is seen in L2, 220 until it is in another block of the cluster;
two warps on a scheduler, which hide nothing of each other's waits, so that a step takes no less than two cycles an
instruction; a launch 1.4 us. Left out are misses of the instruction cache, bank conflicts, the bandwidth of memory, and
that warps wait for the slowest of them: a lower bound, perhaps 30 % off. Whatever depends on values goes the short way.

The columns: instructions and cycles of a training step of a padded batch without options, microseconds, divisions of
integers and accesses to local memory in it (none are wanted); then the cycles that each option adds.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import struct
from pathlib import Path
from typing import NamedTuple

from .build import Kernels
from .walk import Count, Program

GHZ, LAUNCH = 1.75, 2450  # cycles between two kernels of a CUDA graph
TARGET = Path(__file__).with_name("estimates.json")
STEPS = (4, 6)
TIERS = {"block": [(64, 8), (128, 8)], "cluster": [(256, 16), (512, 16)], "grid": [(768, 16), (1024, 16)]}
TIERS |= {"stepwise": [(1024, 128)]}
CELLS = {"LSTM": "hc", "GRU": "h", "RNN_TANH": "h"}  # and the first letters of their states
DTYPES = ("bfloat16", "tf32", "float16", "float", "double")
OPTIONS = ("inference", "lengths", "packed", "reset", "reset state", "h mask", "zoneout mask", "zoneout share")


class Case(NamedTuple):
    tier: str
    H: int
    N: int
    cell: str
    dtype: str
    backward: bool

    def __str__(self) -> str:
        way = "backward" if self.backward else "forward"
        return f"{self.tier} H={self.H} N={self.N} {self.cell} {self.dtype} {way}"


class Memory:
    """Names of tensors, each with an address; what the way through a kernel depends on also has contents."""

    def __init__(self) -> None:
        self.addresses: dict[str, int] = {}
        self.contents: dict[int, bytes] = {}
        self._share = ctypes.c_double(0.25)

    def add(self, names: str, data: bytes | None = None) -> None:
        for name in names.split():
            address = (0x7F00 + len(self.addresses)) << 32
            self.addresses[name] = address
            if data is not None:
                self.contents[address] = data

    def add_share(self, name: str) -> None:
        self.addresses[name] = ctypes.addressof(self._share)  # the host reads it


def tensors(case: Case, option: str, steps: int) -> Memory:
    memory, states = Memory(), CELLS[case.cell]

    def of_states(name: str) -> str:
        return " ".join(name.format(s) for s in states)

    memory.add(f"w_hh0 b_hh0 gates_x y {of_states('{0}0 {0}_n')}")
    if option != "inference":
        memory.add("saved" + "".join(f" {s}_steps" for s in states[1:]))
    if case.backward:
        shifted = option in ("lengths", "packed", "reset", "reset state", "h mask")
        memory.add(f"dy dgates {of_states('d{0}0')}" + " h_prev" * shifted)
    contents = {
        "lengths": ("lengths", struct.pack(f"<{case.N}q", *[steps] * case.N)),
        "packed": ("offsets", struct.pack(f"<{steps + 1}q", *(t * case.N for t in range(steps + 1)))),
        "reset": ("reset", bytes(steps * case.N)),
        "reset state": ("reset", bytes(steps * case.N)),
    }
    if option in contents:
        memory.add(*contents[option])
    others = {
        "reset state": of_states("reset_{0} dreset_{0}"),
        "h mask": "h_mask",
        "zoneout mask": of_states("zone_{0}"),
    }
    memory.add(others.get(option, ""))
    for s in states if option == "zoneout share" else ():
        memory.add_share(f"share_{s}")
    return memory


class Estimator:
    def __init__(self, folder: Path):
        self.folder = folder
        self.kernels: dict[str, Kernels] = {}
        self.programs: dict[str, Program] = {}

    def step(self, case: Case, option: str = "") -> Count | None:
        """One step of a layer, None where the tier cannot hold it."""
        source = "float" if case.dtype == "tf32" else case.dtype
        if source not in self.kernels:
            self.kernels[source] = Kernels(source, self.folder)
        kernels = self.kernels[source]
        count = Count()
        for steps, sign in zip(STEPS, (-1, 1), strict=True):
            memory = tensors(case, option, steps)
            sizes = (steps, case.N, steps * case.N, 0, case.H, case.H, 1)
            arguments = case.cell, case.backward, case.dtype == "tf32", sizes, memory.addresses, case.tier
            tier, launches = kernels.launches(*arguments)
            if tier != case.tier:
                return None
            for launch in launches:
                if launch.kernel not in self.programs:
                    self.programs[launch.kernel] = Program(kernels.cubin.kernel(launch.kernel))
                count.add(self.programs[launch.kernel].walk(launch, memory.contents), sign)
            if case.tier == "stepwise":
                count.cycles += sign * LAUNCH * len(launches)
        divided = Count()
        divided.cycles, divided.instructions = count.cycles // 2, count.instructions // 2
        divided.names.update({name: number / 2 for name, number in count.names.items()})
        divided.waits.update({name: number // 2 for name, number in count.waits.items()})
        divided.cycles = max(divided.cycles, divided.bound())
        return divided


def estimate(estimator: Estimator, case: Case) -> dict | None:
    plain = estimator.step(case)
    if plain is None:
        return None
    row = {"instructions": plain.instructions, "cycles": plain.cycles}
    row["divisions"] = round(plain.number(r"I2F\S*\.RP"))
    row["local"] = round(plain.number("LDL|STL"))
    row["waits"] = {name: cycles for name, cycles in plain.waits.most_common() if cycles > 0}
    for option in OPTIONS[1:] if case.backward else OPTIONS:
        count = estimator.step(case, option)
        assert count is not None
        row[option] = count.cycles - plain.cycles
    return row


def line(case: Case, row: dict, old: dict | None) -> str:
    changed = f"{row['cycles'] - old['cycles']:+,}" if old else "new"
    cells = [f"{row['instructions']:,}", f"{row['cycles']:,}", changed, f"{row['cycles'] / GHZ / 1000:.2f}"]
    cells += [f"{row['divisions']}/{row['local']}", *(f"{row[o]:+,}" if o in row else "" for o in OPTIONS)]
    return "| " + " | ".join([str(case), *cells]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser("gpu_cost", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tier", choices=TIERS, action="append")
    parser.add_argument("--cell", choices=CELLS, action="append")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="default: bfloat16 and tf32")
    parser.add_argument("--write", action="store_true", help="keep the table as the one to compare with")
    parser.add_argument("--waits", action="store_true", help="print what each step waits for")
    parser.add_argument("--folder", type=Path, default=Path("build/gpu-cost"), help="for what is compiled")
    args = parser.parse_args()
    kept = json.loads(TARGET.read_text()) if TARGET.exists() else {}
    estimator = Estimator(args.folder)
    columns = ["estimates, sm_90", "instructions", "cycles", "change", "us", "div/local", *OPTIONS]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for dtype in args.dtype or DTYPES[:2]:
        for tier in args.tier or TIERS:
            for H, N in TIERS[tier]:
                for cell in args.cell or CELLS:
                    for backward in (False, True):
                        case = Case(tier, H, N, cell, dtype, backward)
                        row = estimate(estimator, case)
                        if row is None:
                            continue
                        waits = row.pop("waits")
                        print(line(case, row, kept.get(str(case))), flush=True)
                        if args.waits:
                            print(f"    waits for {', '.join(f'{name} {cycles}' for name, cycles in waits.items())}")
                        kept[str(case)] = row
    if args.write:
        rows = (f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in kept.items())
        TARGET.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
