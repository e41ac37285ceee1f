"""The least time that a shape can take on this processor. Multiplications take at least as long as a loop of nothing
but multiply-adds, and each step as long as a loop that only reads W_hh, each thread its part. Gates, packing, stores,
synchronisation and the cost of a call are not counted."""

import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from shapes import Shape

SECONDS = 0.05  # for each rate


@functools.cache
def loops() -> ctypes.CDLL | None:
    """The compiled loops, or None if no compiler can build them."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "roofline.so"
        command = [*shlex.split(os.environ.get("CXX") or "c++"), "-std=gnu++20", "-O3", "-march=native", "-Wno-psabi"]
        command += ["-fPIC", "-shared", Path(__file__).with_suffix(".cpp"), "-o", library]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return ctypes.CDLL(str(library))


def rate(name: str, *arguments: list) -> float:
    """Work per second in the best of some samples, summed over threads that each run a loop, at the same time."""
    loop = getattr(loops(), name)
    loop.restype = ctypes.c_double

    def best(*values):
        end, most = time.perf_counter() + SECONDS, 0.0
        while (start := time.perf_counter()) < end:
            most = max(most, loop(*values) / (time.perf_counter() - start))
        return most

    with ThreadPoolExecutor(len(arguments[0])) as pool:
        return sum(pool.map(best, *arguments))


@functools.cache
def operations(dtype: str, threads: int) -> float:
    """Per second; float16 is widened to float32."""
    turns = [ctypes.c_int64(1 << 14)] * threads
    pairs = rate("multiply_bfloat16", turns) if dtype == "bfloat16" else 0
    return 2 * (pairs or rate("multiply_floats", turns) / (2 if dtype == "float64" else 1))


@functools.cache
def reads(size: int, threads: int) -> float:
    """Bytes per second of all threads, each of which reads its part of so many bytes."""
    lines = max(size // threads // 64, 8)  # of 64 bytes
    data = torch.ones(threads, lines * 16)
    addresses = [ctypes.c_void_p(row.data_ptr()) for row in data]
    numbers = [ctypes.c_int64(lines * 64)], [ctypes.c_int64(1 + (1 << 20) // (lines * 64))]
    return rate("read_twice", addresses, *(n * threads for n in numbers))


def milliseconds(shape: Shape, call: str, threads: int, peak: float) -> float | None:
    """The least time; None without the loops, and for one step, where the cost of the call dominates. peak: operations
    per second of torch.mm, which may use instructions that the loops do not."""
    if shape.T == 1 or loops() is None:
        return None
    rate = max(operations(shape.dtype, threads), peak)
    width = torch.finfo(getattr(torch, shape.dtype)).bits // 8
    passes = shape.layers * (2 if call == "training" else 1)  # the backward pass goes through the steps as well
    weights = shape.directions * shape.recurrent_weights
    step = shape.T * weights * width / reads(min(shape.directions, threads) * shape.recurrent_weights * width, threads)
    multiplied = int(shape.lengths().sum()) * weights * 2 / rate
    return 1e3 * (passes * max(step, multiplied) + shape.flops(call) / rate - passes * multiplied)
