"""The layers on a GPU beside torch.nn (cuDNN), with CUDA events: called by benchmarks/gpu.sh.

    python benchmarks/gpu.py bench --out benchmarks/results/gpu.json --seconds 420
    python benchmarks/gpu.py touch        runs every tier once on small shapes, for compute-sanitizer

A result that is in the file already is not measured again; what does not fit into the time is left for the next call.
Each time is the median of rounds in which all take turns, on inputs that rotate through more memory than L2 has.
Beside it stand the error against float64 and the most memory that was allocated beyond inputs and parameters.
With --rehearse all of it runs on the CPU, on a few small shapes: its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import episodes
import peers
import report
import torch
from torch import Tensor, nn
from tqdm import tqdm

import fusedrnn

CELLS = {"LSTM": (nn.LSTM, fusedrnn.FusedLSTM), "GRU": (nn.GRU, fusedrnn.FusedGRU), "RNN": (nn.RNN, fusedrnn.FusedRNN)}
# TF32 is what torch.nn does with float32 unless told otherwise; ieee is float32 in full
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "ieee": torch.float32}
WIDTHS, ROWS, T = (64, 128, 192, 256, 384, 512, 768, 1024), (1, 8, 16, 32, 64, 128), 512
# What is timed beside ours: torch.nn; its two ways to do resets; or ours again, with each tier where it fits
VARIANTS = {"": {}, "2 layers": {"num_layers": 2}, "bidirectional": {"bidirectional": True}, "reset": {}, "tiers": {}}
CALLS = ("forward", "training")
TIERS = ("block", "cluster", "grid", "stepwise")
ROUNDS, L2_BYTES, EPISODE = 7, 64 << 20, 32
KEY = ("cell", "dtype", "H", "N", "variant", "call")
# How many times faster we should be than torch.nn in the mean over a group's shapes: forward, training
FLOORS = {("LSTM", "fp16"): (1.0, 1.0)}
FLOORS |= {(cell, dtype): (1.5, 1.3) for cell in ("LSTM", "GRU") for dtype in ("bf16", "fp16", "tf32")} | FLOORS
RESET_FLOOR, LEAST = 5.0, 0.7  # in the mean over shapes with resets; of every shape


def shapes() -> Iterator[tuple]:
    """(cell, dtype, H, N, variant), the most telling first."""
    common = list(itertools.product(("LSTM", "GRU"), ("bf16", "fp16", "tf32")))
    for cell, dtype in common:
        yield from ((cell, dtype, H, N, "") for H, N in itertools.product(WIDTHS[1::2], ROWS[1::2]))
    for cell, dtype in itertools.product(("LSTM", "GRU"), ("tf32", "bf16")):
        yield from ((cell, dtype, H, N, "reset") for H, N in ((64, 16), (128, 8), (256, 64), (512, 16)))
    for cell, dtype in common:
        yield from ((cell, dtype, H, N, "tiers") for H, N in itertools.product(WIDTHS, ROWS[1::2]))
    for variant, (cell, dtype) in itertools.product(("2 layers", "bidirectional"), common):
        yield from ((cell, dtype, H, N, variant) for H, N in itertools.product((128, 256, 512, 1024), (8, 64)))
    for cell, dtype in itertools.product(CELLS, DTYPES):
        yield from ((cell, dtype, H, N, "") for H, N in itertools.product(WIDTHS, ROWS))


def rehearsed() -> Iterator[tuple]:
    """One small shape of each kind."""
    yield from itertools.product(("LSTM", "GRU"), ("bf16", "ieee"), (8,), (3,), VARIANTS)


def pair(cell: str, dtype: torch.dtype, H: int, variant: str, device: str) -> list[nn.RNNBase]:
    theirs, ours = (cls(H, H, dtype=dtype, device=device, **VARIANTS[variant]) for cls in CELLS[cell])
    ours.load_state_dict(theirs.state_dict())
    return [ours, theirs]


@contextlib.contextmanager
def plan(tier: str):
    os.environ["FUSEDRNN_PLAN"] = tier
    try:
        yield
    finally:
        del os.environ["FUSEDRNN_PLAN"]


def planned(module: nn.RNNBase, tier: str, x: Tensor) -> tuple:
    with plan(tier):
        return module(x)


def contenders(ours: nn.RNNBase, theirs: nn.RNNBase, variant: str, reset: Tensor) -> dict[str, Callable]:
    """Functions of the input that return y first. A tier that a layer does not fit into raises a ValueError."""
    if variant == "reset":
        return {
            "fusedrnn": lambda x: ours(x, reset=reset),
            "torch": lambda x: episodes.split(theirs, x, reset),
            "loop": lambda x: episodes.step_by_step(theirs, x, reset),
        }
    if variant == "tiers":
        return {"fusedrnn": ours} | {t: lambda x, t=t: planned(ours, t, x) for t in TIERS}
    return {"fusedrnn": ours, "torch": theirs}


def call_once(run: Callable, weights: list[Tensor], x: Tensor, call: str) -> list[Tensor]:
    """y; in training also the gradients of input and parameters."""
    if call == "forward":
        with torch.no_grad():
            return [run(x)[0]]
    y = run(x)[0]
    return [y, *torch.autograd.grad(y, (x, *weights), torch.ones_like(y))]


def milliseconds(work: Callable[[], object], device: str) -> float:
    if device == "cpu":
        begin = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - begin)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def peak(work: Callable[[], object], device: str) -> int:
    """Bytes of the GPU that a call allocated at most."""
    if device == "cpu":
        work()
        return 0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(cell: str, dtype: str, H: int, N: int, variant: str, call: str, device: str = "cuda", T: int = T) -> dict:
    """Of each contender milliseconds, error and bytes, or None where a tier cannot hold the layer."""
    torch.manual_seed(0)
    ours, theirs = pair(cell, DTYPES[dtype], H, variant, device)
    count = max(2, min(8, math.ceil(L2_BYTES / (T * N * H * 4))))
    inputs = [torch.randn(T, N, H, dtype=DTYPES[dtype], device=device, requires_grad=True) for _ in range(count)]
    reset = torch.rand(T, N, device=device) < 1 / EPISODE
    exact = pair(cell, torch.float64, H, variant, device)[1]
    exact.load_state_dict({name: value.double() for name, value in theirs.state_dict().items()})
    run_exact = contenders(ours, exact, variant if variant == "reset" else "", reset)["torch"]
    weights = {who: list(theirs.parameters() if who in ("torch", "loop") else ours.parameters())
               for who in contenders(ours, theirs, variant, reset)}  # fmt: skip
    found: dict[str, dict | None] = dict.fromkeys(weights)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=dtype != "ieee"):
        wanted = call_once(run_exact, list(exact.parameters()), inputs[0].detach().double().requires_grad_(), call)
        runs = {}
        for who, run in contenders(ours, theirs, variant, reset).items():
            once = lambda x, run=run, who=who: call_once(run, weights[who], x, call)  # noqa: E731
            try:
                error = peers.error(once(inputs[0]), wanted)
            except ValueError:
                continue
            found[who] = {"error": error, "bytes": peak(lambda once=once: once(inputs[0]), device)}
            runs[who] = lambda once=once: [once(x) and None for x in inputs]
        del wanted
        rounds = [{who: milliseconds(run, device) / count for who, run in runs.items()} for _ in range(ROUNDS)]
    for who in runs:
        found[who]["ms"] = statistics.median(times[who] for times in rounds)
    return {"cell": cell, "dtype": dtype, "T": T, "N": N, "I": H, "H": H, "variant": variant, "call": call} | {
        "contenders": found
    }


def gpu() -> dict:
    if not torch.cuda.is_available():
        return report.machine()
    p = torch.cuda.get_device_properties(0)
    return {
        "gpu": p.name, "capability": f"{p.major}.{p.minor}", "multiprocessors": p.multi_processor_count,
        "torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
        **report.machine(),
    }  # fmt: skip


def faster(result: dict, who: str) -> float:
    return result["contenders"][who]["ms"] / result["contenders"]["fusedrnn"]["ms"]


def table(results: list[dict]) -> str:
    """Geometric means of the others' time over ours, and the worst shape; ! marks what falls short."""
    groups: dict[tuple, list[dict]] = {}
    for r in results:
        for who in r.get("contenders", {}):
            if r["variant"] != "tiers" and who != "fusedrnn":
                groups.setdefault((r["cell"], r["dtype"], r["variant"], r["call"], who), []).append(r)
    lines = [f"{'':<42}{'shapes':>7}{'floor':>7}{'faster':>9}{'worst':>8}  where{'':<12}{'error':>7}{'memory':>8}"]
    for (*name, call, who), group in groups.items():
        floor = RESET_FLOOR if name[2] else FLOORS.get((name[0], name[1]), (0, 0))[CALLS.index(call)]
        floor = floor if name[2] in ("", "reset") else 0
        mean = statistics.geometric_mean(faster(r, who) for r in group)
        worst = min(group, key=lambda r: faster(r, who))
        least, where = faster(worst, who), f"H={worst['H']} N={worst['N']}"
        error, memory = (
            max(r["contenders"]["fusedrnn"][what] / max(r["contenders"][who][what], 1e-30) for r in group)
            for what in ("error", "bytes")
        )
        beside = {"loop": "steps", "torch": "split"}[who] if name[2] == "reset" else ""
        lines.append(
            f"{' '.join(filter(None, (*name, beside, call))):<42}{len(group):>7}{floor or '':>7}"
            f"{'!' * (mean < floor) + f'{mean:.2f}x':>9}{'!' * (least < LEAST) + f'{least:.2f}x':>8}  "
            f"{where:<17}{error:>6.2f}x{memory:>7.2f}x"
        )
    lines.append("faster: torch.nn's time over ours; error and memory: the largest of ours over torch.nn's")
    failed = [r for r in results if "failure" in r]
    return "\n".join([*lines, *(f"FAILED {[r[k] for k in KEY]}: {r['failure']}" for r in failed), best_tiers(results)])


def best_tiers(results: list[dict]) -> str:
    """The fastest tier of each shape, and what the plan's choice takes longer."""
    lines = []
    for r in (r for r in results if r["variant"] == "tiers" and "contenders" in r):
        times = {who: c["ms"] for who, c in r["contenders"].items() if c}
        chosen, best = times.pop("fusedrnn"), min(times, key=times.get, default=None)
        if best and chosen > 1.1 * times[best]:
            steps = ", ".join(f"{who} {1e3 * ms / r['T']:.2f}" for who, ms in sorted(times.items(), key=lambda i: i[1]))
            lines.append(f"  {[r[k] for k in KEY]}: {1e3 * chosen / r['T']:.2f} us a step, but {steps}")
    return "\n".join(["the plan's tier is more than a tenth slower than the best one:", *lines]) if lines else ""


def bench(out: Path, seconds: float, rehearse: bool = False) -> None:
    end = time.monotonic() + seconds
    run = json.loads(out.read_text()) if out.exists() else {"machine": gpu(), "results": []}

    def keep(**more):
        run.update(more)
        partial = out.with_suffix(".part")
        partial.write_text(json.dumps(run, indent=1))
        partial.replace(out)

    if run.get("now"):  # it hung or broke the GPU's context; never again
        run["results"].append(dict(zip(KEY, run["now"], strict=True)) | {"failure": "did not return"})
    done = {tuple(r[k] for k in KEY) for r in run["results"]}
    every = dict.fromkeys(rehearsed() if rehearse else shapes())
    todo = [(*shape, call) for shape in every for call in CALLS if (*shape, call) not in done]
    out.parent.mkdir(parents=True, exist_ok=True)
    for left, work in tqdm(list(zip(range(len(todo), 0, -1), todo, strict=True)), unit="shape"):
        if time.monotonic() > end:
            print(f"{left} shapes are left: call this again")
            break
        keep(now=work)
        try:
            result = measure(*work, **({"device": "cpu", "T": 40} if rehearse else {}))
        except RuntimeError as error:  # too little memory, say
            if not rehearse:
                torch.cuda.synchronize()
            result = dict(zip(KEY, work, strict=True)) | {"failure": str(error)}
        run["results"].append(result)
    keep(now=None)
    print(table(run["results"]))


def touch(device: str) -> None:
    """Every cell, dtype and tier, forward and backward, with all that a batch can have; small, for all is checked."""
    cases = list(itertools.product(TIERS, CELLS, (torch.float64, *dict.fromkeys(DTYPES.values())), (False, True)))
    for tier, cell, dtype, tf32 in tqdm(cases):
        if tf32 and dtype != torch.float32:
            continue
        if tier == "cluster" and device == "cuda" and torch.cuda.get_device_capability() < (9, 0):
            continue
        ours = CELLS[cell][1](7, 37, bidirectional=True, dtype=dtype, device=device)
        x = torch.randn(5, 11, 7, dtype=dtype, device=device, requires_grad=True)
        lengths, reset = torch.randint(0, 6, (11,), device=device), torch.rand(5, 11, device=device) < 0.3
        with plan(tier), torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
            ours(x, lengths=lengths, reset=reset)[0].sum().backward()
    if device == "cuda":
        torch.cuda.synchronize()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["bench", "touch"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    parser.add_argument("--seconds", type=float, default=420, help="then bench stops and prints its table")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU")
    args = parser.parse_args(argv)
    if not args.rehearse and not torch.cuda.is_available():
        raise SystemExit("gpu.py: no GPU is in sight")
    if args.part == "touch":
        touch("cpu" if args.rehearse else "cuda")
    else:
        bench(args.out, args.seconds, args.rehearse)


if __name__ == "__main__":
    main()
