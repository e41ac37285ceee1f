"""The least time that a shape can take on this processor.

Its multiplications take what a loop of nothing but multiply-adds takes, and a step at least what a loop of nothing but
loads takes to read W_hh once, each thread its share. Not counted: the gates, packing, stores, the wait of threads for
each other, and whatever is done once a call. Nobody gets there; what is asked beyond it no program can do.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from shapes import Shape

ROOT = Path(__file__).resolve().parent
SECONDS = 0.05  # for each rate
LOOPS = {"float32": "floats", "float16": "floats", "float64": "doubles", "bfloat16": "pairs"}  # of float16: as floats


@functools.cache
def loops() -> ctypes.CDLL | None:
    """The compiled loops, or None where the compiler is missing or does not take them."""
    csrc = ROOT.parent / "csrc"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "roof.so"
        command = [*shlex.split(os.environ.get("CXX") or "c++"), "-std=c++20", "-O3", "-march=native", "-Wno-psabi"]
        command += ["-fPIC", "-shared", "-I", csrc, ROOT / "roof.cpp", csrc / "cpu" / "memory.cpp", "-o", library]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        found = ctypes.CDLL(str(library))
    for name in ("floats", "doubles", "pairs", "reads"):
        getattr(found, f"roof_of_{name}").restype = ctypes.c_double
    return found


def on_all(threads: int, loop: Callable[[], float]) -> float:
    """The sum of the best that each of so many threads reaches in the loop, all at a time."""
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(lambda _: loop(), range(threads)))


@functools.cache
def operations(dtype: str, threads: int) -> float:
    """A second."""
    of, seconds = (lambda kind: getattr(loops(), f"roof_of_{kind}")), ctypes.c_double(SECONDS)
    rate = on_all(threads, lambda: of(LOOPS[dtype])(seconds))
    return rate or on_all(threads, lambda: of("floats")(seconds))


@functools.cache
def reads(size: int, threads: int) -> float:
    """Bytes a second, of all threads, each of which reads its share of so many bytes."""
    share = ctypes.c_int64(size // threads)
    return on_all(threads, lambda: loops().roof_of_reads(ctypes.c_double(SECONDS), share))


def milliseconds(shape: Shape, call: str, threads: int, peak: float) -> float | None:
    """The least time; None for one step, most of which is the call, and without the loops.

    Args:
        peak: operations a second that torch.mm was seen to reach: it may know instructions that the loops do not.
    """
    if shape.T == 1 or loops() is None:
        return None
    rate = max(operations(shape.dtype, threads), peak)
    width = torch.finfo(getattr(torch, shape.dtype)).bits // 8
    passes = shape.layers * (2 if call == "training" else 1)  # the backward pass walks through the steps, too
    weights = shape.directions * shape.recurrent_weights
    at_a_time = min(shape.directions, threads) * shape.recurrent_weights
    step = shape.T * weights * width / reads(at_a_time * width, threads)
    multiplied = shape.rows * weights * 2 / rate
    return 1e3 * (passes * max(step, multiplied) + shape.flops(call) / rate - passes * multiplied)
