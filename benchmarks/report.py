"""The machine that results come from, a line for each result, and their geometric means.

A result is {name, call, threads, shape, gflop, peak, roofline, contenders: {who: {ms, error, rounds, speedup}}}: ms is
[lower quartile, median, upper quartile], speedup the same of (their time / ours) in each round, error the difference
from float64, peak the GFLOP/s of torch.mm, roofline the least possible milliseconds or None.
"""

import contextlib
import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

import torch
from shapes import CALLS

import fusedrnn.info

ROOT = Path(__file__).resolve().parents[1]
OTHER_SECTIONS = {"reset": ("time with reset= / without", 1), "contention": ("slowdown beside busy processes", 1)}
OTHER_SECTIONS["memory"] = ("peak extra memory, MiB:", 2**-20)
EXTENSIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16")


def machine(device: str) -> dict:
    """The hardware and software of the measurement."""
    about = {"date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "cores": os.cpu_count()}
    lines = cpuinfo.read_text().splitlines() if (cpuinfo := Path("/proc/cpuinfo")).exists() else []
    fields = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    numbers = ", ".join(f"{name} {fields[name]}" for name in ("cpu family", "model", "stepping") if name in fields)
    about["cpu"] = f"{fields.get('model name') or platform.processor() or platform.machine()} ({numbers})"
    about["extensions"] = [name for name in EXTENSIONS if name in fields.get("flags", "").split()]
    about |= {"isa": fusedrnn.info.info().get("instruction set", "none").split()[0]}
    about |= {"torch isa": torch.backends.cpu.get_cpu_capability(), "system": platform.platform()}
    about |= {"load average": round(os.getloadavg()[0], 2), "commit": commit(ROOT)}
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        about |= {"gpu": gpu.name, "capability": f"{gpu.major}.{gpu.minor}", "cuda": torch.version.cuda}
        about |= {"multiprocessors": gpu.multi_processor_count, "cudnn": torch.backends.cudnn.version()}
    packages = ("torch", "fusedrnn", "onnx", "onnxruntime", "openvino", "numpy")
    installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return about | {"versions": {"python": platform.python_version()} | {p: installed.get(p) for p in packages}}


def commit(checkout: Path) -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError):  # git is missing
        return subprocess.run(command, cwd=checkout, capture_output=True, text=True).stdout.strip() or "unknown"
    return "unknown"


def line(section: str, result: dict) -> str:
    """Our time, rate, share of the peak and error; how many times faster than each other, and the other's error."""
    text = f"{result['name']:<38} {CALLS[result['call']]:<16} {result['threads']}t"
    if section == "against":
        low, middle, high = result["ratio"]
        return (
            f"{text} {result['old'][1]:9.3f} -> {result['new'][1]:.3f} ms  new/old {middle:.3f} [{low:.3f}-{high:.3f}]"
        )
    if section in OTHER_SECTIONS:
        what, scale = OTHER_SECTIONS[section]
        return f"{text}  {what} " + ", ".join(
            f"{w} {result[w] * scale:.2f}" for w in ("fusedrnn", "torch") if w in result
        )
    ours, rate = result["contenders"]["fusedrnn"], gflops_of(result)
    text += f"{ours['ms'][1]:>9.3f} ms {rate:>5.0f} GFLOP/s {rate / result['peak']:>4.0%} ({ours['error']:.0e})"
    for who, theirs in result["contenders"].items():
        if who != "fusedrnn":
            low, middle, high = theirs["speedup"]
            text += f"  {who} {middle:.2f}x [{low:.2f}-{high:.2f}] ({theirs['error']:.0e})"
    return text


def gflops_of(result: dict, who: str = "fusedrnn") -> float:
    return result["gflop"] / result["contenders"][who]["ms"][1] * 1e3


def means(run: dict) -> str:
    """Geometric means: of the speedups on the grid, for each cell, dtype, call and number of threads; of new/old, for
    each dtype and number of threads."""
    groups: dict[str, list[float]] = {}
    for r in run["results"]:
        group = f"{r['shape']['cell']} {r['shape']['dtype']} {CALLS[r['call']]} {r['threads']}t"
        for who in r["contenders"] if r["shape"]["source"] == "grid" else ():
            if who != "fusedrnn":
                groups.setdefault(f"{group:<36} times as fast as {who}", []).append(r["contenders"][who]["speedup"][1])
    for r in run["against"]:
        for dtype in (r["shape"]["dtype"], "every dtype"):
            groups.setdefault(f"{dtype:<12} {r['threads']}t  new/old", []).append(r["ratio"][1])
    lines = (f"{group} {statistics.geometric_mean(v):.3f} (of {len(v)})" for group, v in groups.items())
    return "\n".join(["Geometric means:", *lines])
