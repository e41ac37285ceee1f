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
WARM = 0.05  # a call shorter than this is made once untimed before its sample: another contender's data is in the cache


def wall_clock(call: Callable, count: int) -> float:
    """Seconds a call. For a device, pass ``alternate`` a clock that waits for it."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def alternate(
    contenders: dict[str, Callable], seconds: float, clock=wall_clock, least: int = 3, most: int = 200
) -> dict[str, list[float]]:
    """Seconds a call of each contender, one sample a round; the order changes from round to round.

    Each contender must have been called once, or its first sample will hold what only a first call does.
    """
    begin, enabled = time.perf_counter(), gc.isenabled()
    gc.disable()
    try:
        first = {who: clock(call, 1) for who, call in contenders.items()}
        order, samples = list(contenders), {who: [] for who in contenders}
        if min(first.values()) > WARM:  # they were a round already
            samples = {who: [duration] for who, duration in first.items()}
        for rounds in range(len(samples[order[0]]), most):
            if rounds >= least and time.perf_counter() - begin > seconds:
                break
            for who in order:
                call = contenders[who]
                if first[who] < WARM:
                    call()
                samples[who].append(clock(call, max(1, math.ceil(SAMPLE / first[who]))))
            order = order[1:] + order[:1] if rounds % 2 else order[::-1]
    finally:
        if enabled:
            gc.enable()
    return samples


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


@functools.cache
def gemm_peak(dtype: str, threads: int) -> float:
    """GFLOP/s of torch.mm: the best of many tries, square matrices that fit the caches and some that do not."""
    before, best = torch.get_num_threads(), 0.0
    torch.set_num_threads(threads)
    for size, tries in ((512, 40), (1024, 20), (2048, 6)):
        a, b = (torch.randn(size, size).to(getattr(torch, dtype)) for _ in range(2))
        best = max(best, *(2e-9 * size**3 / wall_clock(lambda a=a, b=b: torch.mm(a, b), 1) for _ in range(tries)))
    torch.set_num_threads(before)
    return best


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
