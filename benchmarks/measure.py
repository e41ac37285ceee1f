"""Times contenders in turns, and the peak of this machine's matrix product that they are held against."""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

SAMPLE = 0.004  # seconds a sample lasts at least: a call of 10 us is then timed 400 at a time
SIZES = (512, 1024, 2048)  # of square matrices: some fit the caches and some do not
WARM = 0.05  # a call shorter than this is made once untimed before its sample: another contender's data is in the cache


def wall_clock(call: Callable, count: int) -> float:
    """Seconds a call. For a device, pass ``alternate`` a clock that waits for it."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def alternate(
    contenders: dict[str, Callable], seconds: float, clock=wall_clock, least: int = 5, most: int = 200
) -> dict[str, list[float]]:
    """Seconds a call of each contender, one sample a round; the order changes from round to round.

    Each contender must have been called once, or its first sample will hold what only a first call does.
    """

    def sample(who):
        if first[who] < WARM:
            contenders[who]()
        return clock(contenders[who], max(1, math.ceil(SAMPLE / first[who])))

    begin, enabled = time.perf_counter(), gc.isenabled()
    gc.disable()
    try:
        first = {who: clock(call, 1) for who, call in contenders.items()}
        order = list(contenders)  # in the first round, a long call was its sample already
        samples = {who: [first[who] if first[who] >= WARM else sample(who)] for who in order}
        for rounds in range(1, most):
            if rounds >= least and time.perf_counter() - begin > seconds:
                break
            for who in order:
                samples[who].append(sample(who))
            order = order[1:] + order[:1] if rounds % 2 else order[::-1]
    finally:
        if enabled:
            gc.enable()
    return samples


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def products(dtype: str) -> dict[int, Callable]:
    """Contenders of ``alternate``: torch.mm of each size. float16 is computed in float32, and many a processor does so
    many times as fast as torch.mm does float16."""
    kind = torch.float32 if dtype == "float16" else getattr(torch, dtype)

    def product(size):
        a, b = (torch.randn(size, size).to(kind) for _ in range(2))
        return lambda: torch.mm(a, b)

    return {size: product(size) for size in SIZES}


def peak_in(samples: dict) -> float:
    """GFLOP/s of torch.mm, the best size of each round of ``products`` and others: the median of the rounds.

    A processor may be a fifth slower in one minute than in the next: shares of its peak are of what it reached at the
    same time.
    """
    rates = [[2e-9 * size**3 / seconds for seconds in samples[size]] for size in SIZES]
    return statistics.median(map(max, zip(*rates, strict=True)))


@functools.cache
def gemm_peak(dtype: str, threads: int) -> float:
    """The same of one moment, for results that are not asked for their share."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    peak = peak_in(alternate(products(dtype), 0.5))
    torch.set_num_threads(before)
    return peak


@contextlib.contextmanager
def busy_processes(count: int):
    """So many processes that each want a core for themselves."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.3)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
