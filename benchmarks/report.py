"""What is made of the results: the machine they come from, a line for each, the floors, a comparison with older ones.

A result is {name, call, threads, shape, gflop, peak, contenders: {who: {ms, error, speedup}}}: ms is [lower quartile,
median, upper quartile], speedup the same of (their time / ours) within each round, error against float64, peak the
GFLOP/s of this machine's matrix product, of a shape that nears it in the same rounds, roof the milliseconds below which
this processor cannot go, or None. The other sections have one number for each {name, call, threads, shape, who}.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from shapes import GRID, Shape

import fusedrnn.info

ROOT = Path(__file__).resolve().parent.parent
NOISE = 0.05  # medians of two runs of one build on an idle machine differ by less, mostly
SECTIONS = ("results", "reset", "contention", "memory")
CALL_NAMES = {"forward": "forward", "training": "forward+backward"}


def key(result: dict) -> str:
    return f"{result['name']}/{result['call']}/{result['threads']}"


def machine() -> dict:
    """Where and with what the results were made."""
    found = {"date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "cores": os.cpu_count()} | _processor()
    found |= {"isa": fusedrnn.info.info().get("instruction set", "none").split()[0]}
    found |= {"torch isa": torch.backends.cpu.get_cpu_capability(), "system": platform.platform()}
    found |= {"load average": round(os.getloadavg()[0], 2), "busy": _busy_share(), "commit": _commit()}
    versions = {"python": platform.python_version()}
    for package in ("torch", "fusedrnn", "onnx", "onnxruntime", "openvino", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return found | {"versions": versions}


def _processor() -> dict:
    """Its model, and which of the extensions that matter here it has."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    fields = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    model = fields.get("model name") or platform.processor() or platform.machine()
    numbers = ", ".join(f"{name} {fields[name]}" for name in ("cpu family", "model", "stepping") if name in fields)
    flags = fields.get("flags", "").split()
    return {
        "cpu": f"{model} ({numbers})" if numbers else model,
        "extensions": [name for name in ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16") if name in flags],
    }


def _busy_share() -> float | None:
    """How much of the processors others use, in a moment in which we do nothing."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None

    def ticks():
        numbers = [int(n) for n in stat.read_text().splitlines()[0].split()[1:9]]
        return sum(numbers), numbers[3] + numbers[4]

    before = ticks()
    time.sleep(0.5)
    total, idle = (b - a for a, b in zip(before, ticks(), strict=True))
    return round(1 - idle / max(total, 1), 2)


def _commit() -> str:
    def git(*args):
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    try:
        return (git("rev-parse", "HEAD") or "unknown") + (" with changes" if git("status", "--porcelain") else "")
    except OSError:
        return "unknown"


def line(section: str, result: dict) -> str:
    """One result: our time, rate, share of the peak and error; times as fast as each peer, and the peer's error."""
    text = f"{result['name']:<38} {CALL_NAMES[result['call']]:<16} {result['threads']}t"
    if section != "results":
        found = {who: result[who] for who in ("fusedrnn", "torch") if who in result}
        if section == "memory":
            return f"{text}  peak extra memory " + ", ".join(f"{who} {n / 2**20:.1f} MiB" for who, n in found.items())
        about = {"reset": "with reset= / without", "contention": "slowdown beside busy processes"}[section]
        return f"{text}  {about} " + ", ".join(f"{who} {ratio:.2f}x" for who, ratio in found.items())
    ours = result["contenders"]["fusedrnn"]
    text += f"{ours['ms'][1]:>9.3f} ms {gflops_of(result):>5.0f} GFLOP/s {share(result):>4.0%} ({ours['error']:.0e})"
    for who, theirs in result["contenders"].items():
        if who != "fusedrnn":
            low, middle, high = theirs["speedup"]
            text += f"  {who} {middle:.2f}x [{low:.2f}-{high:.2f}] ({theirs['error']:.0e})"
    return text


def gflops_of(result: dict, who: str = "fusedrnn") -> float:
    return result["gflop"] / result["contenders"][who]["ms"][1] * 1e3


def speedup(result: dict, who: str = "torch") -> float:
    return result["contenders"][who]["speedup"][1]


def best_peer(result: dict) -> float:
    """Against the fastest of all others."""
    return min(theirs["speedup"][1] for who, theirs in result["contenders"].items() if who != "fusedrnn")


def share(result: dict) -> float:
    return gflops_of(result) / result["peak"]


def at_the_roof(result: dict) -> dict:
    """The result of a fusedrnn that is as fast as this processor can be. Without a roof, what was measured."""
    if result.get("roof") is None:
        return result
    found = dict(result["contenders"])
    factor = found["fusedrnn"]["ms"][1] / result["roof"]
    found["fusedrnn"] = found["fusedrnn"] | {"ms": [result["roof"]] * 3}
    for who in found.keys() - {"fusedrnn"}:
        found[who] = found[who] | {"speedup": [factor * ratio for ratio in found[who]["speedup"]]}
    return result | {"contenders": found}


def error_ratio(result: dict) -> float:
    """Our error over torch.nn's. One of less than two roundings counts as two: what is nearly exact gives no ratio."""
    least = 2 * torch.finfo(getattr(torch, result["shape"]["dtype"])).eps
    ours, theirs = (result["contenders"][who]["error"] for who in ("fusedrnn", "torch"))
    return max(ours, least) / max(theirs, least)


def ours_over_torch(result: dict) -> float:
    """Of what is measured for each alone: bytes, slowdown."""
    return result["fusedrnn"] / result["torch"]


@dataclass(frozen=True)
class Floor:
    """What was promised for some of the results: for each of them, and for their geometric mean."""

    work: str
    select: Callable[[dict], bool]
    each: float | None = None
    mean: float | None = None
    value: Callable[[dict], float] = speedup
    at_most: bool = False
    section: str = "results"

    def falls_short(self, value: float, of_mean: bool = False) -> bool:
        limit = self.mean if of_mean else self.each
        return limit is not None and (value > limit if self.at_most else value < limit)

    def judged(self, value: float, roof: float, of_mean: bool = False) -> str:
        mark = ("^" if self.falls_short(roof, of_mean) else "!") if self.falls_short(value, of_mean) else ""
        return f"{mark}{value:.2f}"


def where(call=None, grid=None, **fields) -> Callable[[dict], bool]:
    """Results with these fields of their shape."""

    def select(result):
        shape = result["shape"]
        return (
            (call is None or result["call"] == call)
            and (grid is None or (shape["source"] == "grid") == grid)
            and all(shape[name] == value for name, value in fields.items())
        )

    return select


def _peak_bound(call):
    return lambda r: r["call"] == call and Shape(**r["shape"]).nears_peak


def _floors():
    for cell, dtype, short, forward, training in (
        ("LSTM", "float32", "fp32", (1.0, 1.35), (1.1, 1.7)),
        ("GRU", "float32", "fp32", (1.15, 2.5), (1.15, 3.0)),
        ("RNN", "float32", "fp32", (None, 3.0), (None, 4.0)),
        ("LSTM", "bfloat16", "bf16", (1.0, 1.4), (1.0, 2.2)),
        ("GRU", "bfloat16", "bf16", (None, 3.0), (None, 4.0)),
    ):
        for call, floors in (("forward", forward), ("training", training)):
            name = f"{cell} {short} {CALL_NAMES[call]}, grid of {len(GRID)}"
            yield Floor(name, where(call, True, cell=cell, dtype=dtype), *floors)
    variant = {"call": "training", "dtype": "float32", "source": "variant"}
    for name, fields in (
        ("packed", {"form": "packed"}),
        ("bidirectional", {"directions": 2}),
        ("proj_size", {}),
        ("2 layers", {"layers": 2}),
    ):
        select = where(**variant, **fields)
        if not fields:
            select = lambda r: where(**variant)(r) and r["shape"]["proj"] > 0  # noqa: E731
        yield Floor(f"LSTM fp32 {name}, forward+backward", select, each=1.7)
    for cell in ("LSTM", "GRU", "LSTMCell"):
        yield Floor(f"one step, {cell}, T=1 N=1 H=128", where(cell=cell, form="step", N=1), each=2.0)
    yield Floor("reset=, T128 N2 I512 H128, against a loop", where(form="reset", N=2), each=25.0)
    yield Floor("reset=, T128 N16 I64 H64, against a loop", where(form="reset", N=16), each=9.0)
    yield Floor(
        "reset=, the same call / without reset=",
        lambda r: True,
        each=1.1,
        value=lambda r: r["fusedrnn"],
        at_most=True,
        section="reset",
    )
    yield Floor("lengths=, against pack and pad", where("training", form="lengths"), each=2.0)
    yield Floor(
        "forward, T >= 50, against the best of all peers",
        lambda r: r["call"] == "forward" and r["shape"]["T"] >= 50,
        each=1.0,
        value=best_peer,
    )
    yield Floor("share of GEMM peak, fp32 forward, N>=32 H>=512", _peak_bound("forward"), each=0.9, value=share)
    yield Floor("share of GEMM peak, fp32 forward+backward", _peak_bound("training"), each=0.85, value=share)
    rounded = lambda r: r["shape"]["dtype"] != "float64"  # noqa: E731  float64 is what all are compared with
    yield Floor("error against float64 / torch.nn's", rounded, each=1.5, value=error_ratio, at_most=True)
    slowdown = {"value": lambda r: r["fusedrnn"], "at_most": True, "section": "contention"}
    yield Floor("slowdown beside one busy process a core", lambda r: True, each=4.0, **slowdown)
    yield Floor("   the same, torch.nn", lambda r: True, value=lambda r: r["torch"], at_most=True, section="contention")
    memory = {"value": ours_over_torch, "at_most": True, "section": "memory"}
    for call in ("forward", "training"):
        yield Floor(f"peak extra memory / torch.nn's, {CALL_NAMES[call]}", where(call), each=1.0, **memory)


FLOORS = list(_floors())


def summary(run: dict) -> str:
    """The table of floors, each beside what was measured. Roof is what it would be at the roof: of several, the mean.

    ! marks what falls short, ^ where the roof falls short too. Worst is the worst of all, or of those that fall short
    although the roof allows more; the last column names it, for the most threads.
    """
    threads = sorted({r["threads"] for section in SECTIONS for r in run[section]})
    head = f"{'':<48}{'floor':^14}" + "".join(f"{f'{n} thread' + 's' * (n > 1):>20}{'':4}" for n in threads)
    rows = [head, f"{'':<48}{'each':>7}{'mean':>7}" + f"{'worst':>9}{'mean':>8}{'roof':>7}" * len(threads)]
    for floor in FLOORS:
        columns, found, where_worst = "", False, ""
        for n in threads:
            chosen = {key(r): r for r in run[floor.section] if r["threads"] == n and floor.select(r)}
            if not chosen:
                columns += f"{'':24}"
                continue
            found = True
            values = {name: floor.value(r) for name, r in chosen.items()}
            roofs = dict.fromkeys(values, math.nan)
            if any(r.get("roof") for r in chosen.values()) and not floor.at_most:
                roofs = {name: floor.value(at_the_roof(r)) for name, r in chosen.items()}
            short = [name for name in values if floor.falls_short(values[name])]
            allowed = [name for name in short if not floor.falls_short(roofs[name])]  # what the roof allows comes first
            worst = (max if floor.at_most else min)(allowed or values, key=values.get)
            mean, roof = (statistics.geometric_mean(v.values()) if len(v) > 1 else v[worst] for v in (values, roofs))
            columns += f"{floor.judged(values[worst], roofs[worst]):>9}"
            columns += f"{floor.judged(mean, roof, of_mean=True) if len(values) > 1 else '':>8}"
            columns += f"{'' if math.isnan(roof) else f'{roof:.2f}':>7}"
            if len(values) > 1 and short:
                where_worst = f"  {chosen[worst]['name']}"
        if found:
            sign = "<=" if floor.at_most else ""
            wanted = [sign + f"{limit:.2f}" if limit is not None else "" for limit in (floor.each, floor.mean)]
            rows.append(f"{floor.work:<48}{wanted[0]:>7}{wanted[1]:>7}{columns}{where_worst}".rstrip())
    return "\n".join(rows)


def compare(new: dict, old: dict) -> list[str]:
    """What got slower, beyond the spread within both runs and the noise between runs.

    Against torch.nn in the same run, as the machine may have changed; and, on the same processor, also by the clock, as
    torch.nn may have: the lesser of both slowdowns counts.
    """
    before = {key(r): r for r in old["results"]}
    both = [(before[key(r)], r) for r in new["results"] if key(r) in before]
    if not both:
        return ["Nothing to compare: the older results have no name in common with these."]
    slower = []
    for pair in both:
        was, now = (r["contenders"]["torch"]["speedup"] for r in pair)
        changes = [[was[0] / now[2], was[1] / now[1]]]  # of the nearest quartiles, of the medians
        if new["machine"]["cpu"] == old["machine"]["cpu"]:
            was, now = (r["contenders"]["fusedrnn"]["ms"] for r in pair)
            changes.append([now[0] / was[2], now[1] / was[1]])
        nearest, median = map(min, zip(*changes, strict=True))
        if nearest > 1 and median > 1 + NOISE:
            slower.append(f"Slower: {key(pair[1])} takes {median:.2f} times as long as before")
    return slower
