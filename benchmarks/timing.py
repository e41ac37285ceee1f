"""Times contenders in alternation, and torch.mm, which their speed is related to."""

import gc
import math
import statistics
import time
from collections.abc import Callable

import torch

SAMPLE = 0.004  # a sample lasts at least so many seconds: a call of 10 us is repeated 400 times
WARM = 0.05  # a shorter call is made once untimed before its sample, as the contender before it filled the cache
SIZES = {"cpu": (512, 1024), "cuda": (4096, 8192)}  # of the square matrices of torch.mm


def wall_clock(call: Callable, count: int) -> float:
    """Seconds per call."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def cuda_clock(call: Callable, count: int) -> float:
    """Seconds per call on the GPU. What is in L2 is overwritten before each."""
    flush = torch.empty(1 << 25, device="cuda")
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for begin, end in events:
        flush.zero_()
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return sum(begin.elapsed_time(end) for begin, end in events) * 1e-3 / count


def alternate(
    contenders: dict, seconds: float, clock=wall_clock, least=5, most=200, shortest=SAMPLE
) -> dict[str, list]:
    """Seconds per call of each contender, one sample per round; the order changes from round to round. Each must have
    been called once, or its first sample includes one-time work."""

    def sample(who):
        if first[who] < WARM:
            contenders[who]()
        return clock(contenders[who], max(1, math.ceil(shortest / first[who])))

    begin = time.perf_counter()
    gc.disable()
    first = {who: clock(call, 1) for who, call in contenders.items()}
    order = list(contenders)  # in the first round, the first call of a slow contender is its sample
    samples = {who: [first[who] if first[who] >= WARM else sample(who)] for who in order}
    for rounds in range(1, most):
        if rounds >= least and time.perf_counter() - begin > seconds:
            break
        for who in order:
            samples[who].append(sample(who))
        order = order[1:] + order[:1] if rounds % 2 else order[::-1]
    gc.enable()
    return samples


CLOCKS = {"cpu": wall_clock, "cuda": cuda_clock}


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def gemm_peak(dtype: str, device: str = "cpu", seconds: float = 0.1) -> float:
    """GFLOP/s of torch.mm: the best size of each round, the median of the rounds. Every result gets a new one, as a
    shared processor may be a fifth slower in one minute than in the next."""
    kind = torch.float32 if (dtype, device) == ("float16", "cpu") else getattr(torch, dtype)  # mm in float16 is slow
    pairs = {size: [torch.randn(size, size, device=device).to(kind) for _ in range(2)] for size in SIZES[device]}
    products = {size: lambda pair=pair: torch.mm(*pair) for size, pair in pairs.items()}
    samples = alternate(products, seconds, CLOCKS[device], least=3)
    rates = [[2e-9 * size**3 / s for s in samples[size]] for size in products]
    return statistics.median(map(max, zip(*rates, strict=True)))
