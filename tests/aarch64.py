"""Runs the CPU kernels as an aarch64 processor would: cross-compiled, without PyTorch, by qemu. Every cell, type and
form of a batch, forward and backward, is held against the reference in double. Needs aarch64-linux-gnu-g++ (or what
AARCH64_CXX says) and qemu-aarch64; where they are missing it says SKIPPED.
"""

from __future__ import annotations

import argparse
import collections
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from itertools import product

import torch
from cpu_alone import build, cases
from cpu_alone.cases import Case
from cpu_alone.kernels import Kernels, Program
from cpu_alone.mutants import CASES
from cuda_on_cpu import build as compiler
from cuda_on_cpu.layer import BUILT_IN
from tolerances import PACKED, distance

from fusedrnn import packing

KINDS = [("wide", "float32"), ("wide", "bfloat16"), ("narrow", "float64"), ("narrow", "float16")]
KINDS += [("neon-bf16", "bfloat16")]  # products of pairs, which qemu has
BATCHES = ["padded", "packed fewer", "lengths", "reset", "lengths reset masks", "packed reset shares"]
EVERY = [  # of relu and 16 bits a single step: later, rounding may take a number to the other side of zero
    Case(mode, tier, dtype, batch, D=2, T=1 if mode == "RNN_RELU" and "16" in dtype else 3, N=9, I=6, H=29)
    for mode, (tier, dtype), batch in product(BUILT_IN, KINDS, BATCHES)
]


def find_tools() -> tuple[list[str], str] | None:
    cxx = shlex.split(os.environ.get("AARCH64_CXX") or "aarch64-linux-gnu-g++")
    qemu = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    return ([*cxx, "-static"], qemu) if shutil.which(cxx[0]) and qemu else None


def both_passes(case: Case, emulated: Program) -> list[str]:
    return cases.wrong(case, cases.calls(case, emulated), cases.prepare(case).exact)


def packed_products(command: list[str]) -> list[str]:
    """What is wrong with products of packed weights; of int8 with rows that lose nothing."""
    complaints = []
    for form, rows, k in product(packing.FORMS, (1, 2, 7), (4, 37)):
        w = torch.randn(3 * 90, k)
        x = torch.randint(-127, 128, (rows, k)).float()
        x[:, 0] = 127
        block = packing.pack(form, 90, {"w_ih": w})
        header = torch.tensor([rows, block.numel()]).view(torch.uint8)
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"".join(t.numpy().tobytes() for t in (header, block, x)))
            file.flush()
            done = subprocess.run([*command, file.name], capture_output=True, check=True)
        values, scales = packing.convert(w, form)
        exact = x.double() @ (values.double() if scales is None else values.double() * scales.double()[:, None]).T
        got = torch.frombuffer(bytearray(done.stdout), dtype=torch.float32).view(rows, -1)
        if (off := distance(got, exact)) > PACKED["float32"]:
            complaints.append(f"packed {form}, {rows} rows of {k}: off by {off:.2g}")
    return complaints


def compare(some: list[Case], emulated: Program, here: Kernels) -> None:
    """Prints which results have the bits of this machine's kernels."""
    same, all = collections.Counter(), collections.Counter()
    for case in some:
        for one, other in zip(cases.calls(case, emulated), cases.calls(case, here), strict=True):
            kind = case.mode, case.dtype, "backward" if one.backward else "forward"
            all[kind] += len(one.results)
            same[kind] += len(one.results) - len(cases.changed("", one, other))
    for kind, count in sorted(all.items()):
        print(*kind, f"{same[kind]} of {count} results bit by bit", sep="  ")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compare", action="store_true", help="also say which results have the bits of this machine's")
    arguments = parser.parse_args()
    tools = find_tools()
    if not tools:
        print("aarch64: SKIPPED, there is no aarch64-linux-gnu-g++ or no qemu-aarch64")
        return 0
    here = Kernels(build.library()) if arguments.compare else None
    compiler.CXX, qemu = tools
    emulated = Program([qemu, build.program("plain")])
    bad = 0
    for case, judge in [*((case, both_passes) for case in EVERY), *((case, cases.run) for case in CASES)]:
        if complaints := judge(case, emulated):
            print(case, *complaints, sep="\n    ", flush=True)
            bad += 1
    for flags in ([], ["-march=armv8.2-a+dotprod"]):
        complaints = packed_products([qemu, str(build.packed_program(compiler.CSRC, *flags))])
        print(*complaints, sep="\n", end="\n" * bool(complaints))
        bad += len(complaints)
    print(f"aarch64: {len(CASES) + len(EVERY)} cases and packed weights, {bad} of them wrong", flush=True)
    if here:
        compare([case for case in EVERY if case.tier != "neon-bf16"], emulated, here)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
