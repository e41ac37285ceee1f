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
import sys
from itertools import product

from cpu_alone import build, cases
from cpu_alone.cases import Case
from cpu_alone.kernels import Kernels, Program
from cpu_alone.mutants import CASES
from cuda_on_cpu import build as compiler
from cuda_on_cpu.layer import BUILT_IN

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
    print(f"aarch64: {len(CASES) + len(EVERY)} cases, {bad} of them wrong", flush=True)
    if here:
        compare([case for case in EVERY if case.tier != "neon-bf16"], emulated, here)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
