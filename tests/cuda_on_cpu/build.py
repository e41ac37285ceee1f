"""Compiles CUDA sources with g++ against the emulator, into build/cuda_on_cpu. What is up to date is not rebuilt."""

from __future__ import annotations

import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
HERE = ROOT / "tests/cuda_on_cpu"
EMULATOR = ROOT / "emulator"
CSRC = ROOT / "csrc"
TYPES = ("float", "double", "bfloat16", "float16")  # one source file of kernels each
BUILD = ROOT / "build/cuda_on_cpu"

CXX = shlex.split(os.environ.get("CXX") or "g++")
COMMON = ["-std=c++20", "-g1", "-fPIC", "-fno-strict-aliasing"]
# flags of every file; flags of those that hold kernels. Registers and variables that are not set hold a pattern.
FLAGS = {
    "plain": (["-O2"], ["-O1", "-ftrivial-auto-var-init=pattern"]),  # -O2 takes longer to compile than it saves
    "tsan": (["-O1", "-DEMULATOR_TSAN"], ["-fsanitize=thread"]),
    "asan": (
        ["-O1", "-DEMULATOR_ASAN", "-fno-omit-frame-pointer"],
        ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    ),
}
SANITIZER = {"plain": [], "tsan": ["-fsanitize=thread"], "asan": ["-fsanitize=address,undefined"]}


def missing() -> str:
    """Why this machine cannot compile and run the kernels, or ""."""
    if shutil.which(CXX[0]) is None:
        return f"the C++ compiler {CXX[0]} is not found"
    if sys.platform != "linux":
        return "the emulator runs on Linux"
    return ""


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")


def compile(source: Path, flags: list[str], csrc: Path) -> Path:
    """Returns the object file of a source, made for exactly this text, these headers and these flags."""
    # quote: csrc/time.h must not take the place of the system's
    command = [
        *CXX,
        *COMMON,
        *flags,
        "-I",
        str(HERE),
        "-I",
        str(EMULATOR),
        "-iquote",
        str(csrc),
        "-x",
        "c++",
        str(source),
    ]
    text = subprocess.run([*command, "-E"], capture_output=True, text=True)
    if text.returncode:
        raise RuntimeError(text.stderr)
    content = "\0".join([*command, text.stdout]).replace(str(csrc), "csrc")  # a copy of csrc gives the same
    key = hashlib.sha256(content.encode()).hexdigest()[:20]
    target = BUILD / f"{source.stem}-{key}.o"
    if not target.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}.o")
        run([*command, "-c", "-o", str(partial)])
        partial.rename(target)
    return target


def compile_all(jobs: list[tuple[Path, list[str], Path]]) -> list[str]:
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", 2))) as pool:
        return [str(path) for path in pool.map(lambda job: compile(*job), jobs)]


@functools.cache
def build(
    name: str,
    kernels: tuple[Path, ...],
    others: tuple[Path, ...] = (),
    mode: str = "plain",
    csrc: Path = CSRC,
    definitions: tuple[str, ...] = (),
) -> Path:
    """Returns the program or, for a name that ends in .so, the library of these sources and the emulator."""
    flags, kernel_flags = FLAGS[mode]
    runtime_flags = flags + (kernel_flags if mode == "asan" else [])  # ThreadSanitizer would report the runtime itself
    jobs = [(source, flags + kernel_flags, csrc) for source in kernels]
    jobs += [(source, runtime_flags, csrc) for source in sorted(EMULATOR.glob("*.cpp"))]
    jobs += [(source, [*runtime_flags, *definitions], csrc) for source in others]
    objects = compile_all(jobs)
    return link(name, objects, mode)


def link(name: str, objects: list[str], mode: str) -> Path:
    key = hashlib.sha256("\0".join([*CXX, mode, *objects]).encode()).hexdigest()[:20]
    target = BUILD / f"{Path(name).stem}-{mode}-{key}{Path(name).suffix}"
    if not target.exists():
        partial = target.with_suffix(f".{os.getpid()}")
        shared = ["-shared"] if target.suffix == ".so" else []
        run([*CXX, *shared, *SANITIZER[mode], *objects, "-o", str(partial)])
        partial.rename(target)
    return target


def kernels(name: str, others: tuple[Path, ...], mode: str, csrc: Path, types: tuple[str, ...]) -> Path:
    """The library that :func:`build` makes of the kernels of these types."""
    sources = tuple(csrc / "cuda" / f"{one}.cu" for one in types)
    sources += (HERE / "cells.cu",) * ("double" in types)
    return build(name, sources, others, mode, csrc, (f"-DDRIVER_TYPES={','.join(types)}",))
