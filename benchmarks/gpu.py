"""The layers on a GPU beside torch.nn (cuDNN), with CUDA events: called by benchmarks/gpu.sh.

    python benchmarks/gpu.py bench --out benchmarks/results/gpu.json --seconds 420
    python benchmarks/gpu.py touch        runs every tier once on small shapes, for compute-sanitizer

A result that is in the file already is not measured again; what does not fit into the time is left for the next call.
Each time is the median of rounds in which both take turns, on inputs that rotate through more memory than L2 has.
Beside it stand the error against float64 and the most memory that was allocated beyond inputs and parameters.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import time
from pathlib import Path

import report
import torch
from torch import nn
from tqdm import tqdm

import fusedrnn

CELLS = {"LSTM": (nn.LSTM, fusedrnn.FusedLSTM), "GRU": (nn.GRU, fusedrnn.FusedGRU), "RNN": (nn.RNN, fusedrnn.FusedRNN)}
# TF32 is what torch.nn does with float32 unless told otherwise; ieee is float32 in full
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "ieee": torch.float32}
WIDTHS, ROWS, T = (64, 128, 192, 256, 384, 512, 768, 1024), (1, 8, 16, 32, 64, 128), 512
VARIANTS = {"": {}, "2 layers": {"num_layers": 2}, "bidirectional": {"bidirectional": True}}
CALLS = ("forward", "training")
TIERS = ("block", "cluster", "grid", "stepwise")
ROUNDS, L2_BYTES = 7, 64 << 20


def shapes():
    """(cell, dtype, H, N, variant), the most telling first."""
    for cell, dtype in [
        ("LSTM", "bf16"),
        ("LSTM", "fp16"),
        ("LSTM", "tf32"),
        ("GRU", "bf16"),
        ("GRU", "fp16"),
        ("GRU", "tf32"),
    ]:
        yield from ((cell, dtype, H, N, "") for H, N in itertools.product(WIDTHS[1::2], ROWS[1::2]))
    for cell, dtype in itertools.product(CELLS, DTYPES):
        yield from ((cell, dtype, H, N, "") for H, N in itertools.product(WIDTHS, ROWS))
    for variant, cell, dtype in itertools.product(list(VARIANTS)[1:], ("LSTM", "GRU"), ("bf16", "fp16", "tf32")):
        yield from ((cell, dtype, H, N, variant) for H, N in itertools.product((128, 256, 512, 1024), (8, 64)))


def pair(cell: str, dtype: torch.dtype, H: int, variant: str, device: str) -> list[nn.RNNBase]:
    theirs, ours = (cls(H, H, dtype=dtype, device=device, **VARIANTS[variant]) for cls in CELLS[cell])
    ours.load_state_dict(theirs.state_dict())
    return [ours, theirs]


def call_once(module: nn.RNNBase, x: torch.Tensor, call: str) -> list[torch.Tensor]:
    """y; in training also the gradients of input and parameters."""
    if call == "forward":
        with torch.no_grad():
            return [module(x)[0]]
    y = module(x)[0]
    return [y, *torch.autograd.grad(y, (x, *module.parameters()), torch.ones_like(y))]


def distance(found: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """The largest difference, relative to the largest element of its tensor."""
    return max(((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(found, exact, strict=True))


def events(module: nn.RNNBase, inputs: list[torch.Tensor], call: str) -> float:
    """Milliseconds a call, over all inputs."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for x in inputs:
        call_once(module, x, call)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / len(inputs)


def peak(module: nn.RNNBase, x: torch.Tensor, call: str) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call_once(module, x, call)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(cell: str, dtype: str, H: int, N: int, variant: str, call: str) -> dict:
    modules = pair(cell, DTYPES[dtype], H, variant, "cuda")
    count = max(2, min(8, math.ceil(L2_BYTES / (T * N * H * 4))))
    inputs = [torch.randn(T, N, H, dtype=DTYPES[dtype], device="cuda", requires_grad=True) for _ in range(count)]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=dtype != "ieee"):
        found = [call_once(m, inputs[0], call) for m in modules]
        exact = pair(cell, torch.float64, H, variant, "cuda")[1]
        exact.load_state_dict({name: value.double() for name, value in modules[1].state_dict().items()})
        wanted = call_once(exact, inputs[0].detach().double().requires_grad_(), call)
        errors = [distance(results, wanted) for results in found]
        del found, wanted, exact
        memory = [peak(m, inputs[0], call) for m in modules]
        rounds = [[events(m, inputs, call) for m in modules] for _ in range(ROUNDS)]
    times = [statistics.median(column) for column in zip(*rounds, strict=True)]
    result = {"cell": cell, "dtype": dtype, "T": T, "N": N, "I": H, "H": H, "variant": variant, "call": call}
    for who, *values in zip(("fusedrnn", "torch"), times, errors, memory, strict=True):
        result[who] = dict(zip(("ms", "error", "bytes"), values, strict=True))
    return result


def gpu() -> dict:
    p = torch.cuda.get_device_properties(0)
    return {
        "gpu": p.name, "capability": f"{p.major}.{p.minor}", "multiprocessors": p.multi_processor_count,
        "torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
        **report.machine(),
    }  # fmt: skip


def table(results: list[dict]) -> str:
    """Geometric means of torch.nn's time over ours, and the worst shape."""
    groups: dict[tuple, list[dict]] = {}
    for r in results:
        groups.setdefault((r["cell"], r["dtype"], r["variant"], r["call"]), []).append(r)
    lines = [f"{'':<40}{'shapes':>7}{'faster':>8}{'worst':>8}  where{'':<12}{'error':>7}{'memory':>8}"]
    for name, group in groups.items():
        faster = {(r["H"], r["N"]): r["torch"]["ms"] / r["fusedrnn"]["ms"] for r in group}
        (H, N), worst = min(faster.items(), key=lambda item: item[1])
        error, memory = (
            max(r["fusedrnn"][what] / max(r["torch"][what], 1e-30) for r in group) for what in ("error", "bytes")
        )
        mean = statistics.geometric_mean(faster.values())
        lines.append(
            f"{' '.join(filter(None, name)):<40}{len(group):>7}{mean:>7.2f}x{worst:>7.2f}x  "
            f"{f'H={H} N={N}':<17}{error:>6.2f}x{memory:>7.2f}x"
        )
    return "\n".join(
        [*lines, "faster: torch.nn's time over ours; error and memory: the largest of ours over torch.nn's"]
    )


def bench(out: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    run = json.loads(out.read_text()) if out.exists() else {"machine": gpu(), "results": []}
    done = {tuple(r[k] for k in ("cell", "dtype", "H", "N", "variant", "call")) for r in run["results"]}
    todo = [(*shape, call) for shape in dict.fromkeys(shapes()) for call in CALLS if (*shape, call) not in done]
    out.parent.mkdir(parents=True, exist_ok=True)
    for left, work in tqdm(list(zip(range(len(todo), 0, -1), todo, strict=True)), unit="shape"):
        if time.monotonic() > end:
            print(f"{left} shapes are left: call this again")
            break
        run["results"].append(measure(*work))
        out.write_text(json.dumps(run, indent=1))
    print(table(run["results"]))


def touch(device: str) -> None:
    """Every cell, dtype and tier, forward and backward, with all that a batch can have; small, for all is checked."""
    cases = list(itertools.product(TIERS, CELLS, (torch.float64, *dict.fromkeys(DTYPES.values())), (False, True)))
    for tier, cell, dtype, tf32 in tqdm(cases):
        if tf32 and dtype != torch.float32:
            continue
        if tier == "cluster" and device == "cuda" and torch.cuda.get_device_capability() < (9, 0):
            continue
        os.environ["FUSEDRNN_PLAN"] = tier
        ours = CELLS[cell][1](7, 37, bidirectional=True, dtype=dtype, device=device)
        x = torch.randn(5, 11, 7, dtype=dtype, device=device, requires_grad=True)
        lengths, reset = torch.randint(0, 6, (11,), device=device), torch.rand(5, 11, device=device) < 0.3
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
            ours(x, lengths=lengths, reset=reset)[0].sum().backward()
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["bench", "touch"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    parser.add_argument("--seconds", type=float, default=420, help="then bench stops and prints its table")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("gpu.py: no GPU is in sight")
    if args.part == "touch":
        touch("cuda")
    else:
        bench(args.out, args.seconds)


if __name__ == "__main__":
    main()
