"""Compiles the CPU kernels without PyTorch. What is up to date is not rebuilt."""

from __future__ import annotations

from pathlib import Path

from cuda_on_cpu import build

HERE = Path(__file__).parent
SOURCES = ("wide", "narrow", "dot_products", "driver")
FLAGS = {
    "plain": ["-O1"],
    "tsan": ["-O1", "-fsanitize=thread"],
    "asan": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"],
}
COMMON = ["-I", str(HERE), "-Wno-psabi", "-DAT_MUTANT=pause_by_chance"]


def kernels(name: str, mode: str, csrc: Path, others: tuple[Path, ...] = ()) -> Path:
    """Returns the program or, for a name that ends in .so, the library of the kernels, their driver and others."""
    flags = [*COMMON, *FLAGS[mode]]
    fenced = mode == "plain"  # sanitizers detect that themselves
    jobs = [(HERE / f"{source}.cpp", flags, csrc) for source in SOURCES]
    jobs.append((csrc / "cpu/isa_neon_bf16.cpp", flags, csrc))  # empty but for Arm
    jobs += [(csrc / "cpu/parallel.cpp", flags, csrc), *((other, flags, csrc) for other in others)]
    jobs.append((csrc / "cpu/memory.cpp", [*flags, "-include", "fenced.h"] if fenced else flags, csrc))
    if fenced:
        jobs.append((HERE / "fenced.cpp", flags, csrc))
    return build.link(name, build.compile_all(jobs), mode)


def library(csrc: Path = build.CSRC) -> Path:
    return kernels("cpu.so", "plain", csrc)


def program(mode: str, csrc: Path = build.CSRC) -> Path:
    """The kernels in a program, with or without a sanitizer: see replay.cpp."""
    return kernels("cpu-replay", mode, csrc, (build.HERE / "replay.cpp",))


def packed_program(csrc: Path = build.CSRC, *flags: str) -> Path:
    """The products with packed weights in a program: see packed.cpp."""
    jobs = [(source, [*COMMON, "-O1", *flags], csrc) for source in (HERE / "packed.cpp", csrc / "packed.cpp")]
    return build.link("packed", build.compile_all(jobs), "plain")
