"""Times fusedrnn on named shapes, in alternation with torch.nn, a Python loop, ONNX Runtime and OpenVINO.

Before anything is timed, its results are compared with float64; a disagreement ends the run.

    python benchmarks/bench.py                     everything, under 10 minutes on two cores
    python benchmarks/bench.py --quick             a part of it, under a minute
    python benchmarks/bench.py --only 'GRU.*/training/2' --seconds 3      or --only speech
    python benchmarks/bench.py --against ../old    this checkout and another one, both compiled
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import report
import roofline
import timing
import torch
from contenders import INFERENCE, OTHERS, Work, contender, error, tensors
from shapes import SHAPES, Shape
from tqdm import tqdm
from worker import worker

import fusedrnn

# The largest accepted difference from float64, relative to the largest element. Gradients of hundreds of steps are sums
# of hundreds of rounded terms; a wrong formula is off by 1e-1 and more in any dtype.
AGREEMENT = {"float64": 1e-11, "float32": 2e-4, "float16": 2e-2, "bfloat16": 1e-1, "TF32": 2e-2}
MEMORY = ("LSTM-fp32-100x64x512x512", "LSTM-bf16-100x64x512x512")
CONTENTION = "LSTM-fp32-100x64x128x128"


def options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, cores = parser.add_argument, os.cpu_count() or 1
    add("--quick", action="store_true", help="fewer shapes, all cores only, less time for each")
    add("--only", default="", metavar="REGEX", help="only those whose name or source, as --list prints them, matches")
    add("--list", action="store_true", help="print the names of all that would be timed, and their sources")
    add("--threads", type=int, nargs="+", choices=range(1, cores + 1), metavar="N", help="(default: 1 and 2)")
    add("--seconds", type=float, help="time for each set of contenders (default: 0.4, with --quick 0.25)")
    add("--device", choices=SHAPES, default="cpu", help="cuda: other shapes, beside torch.nn only (default: cpu)")
    add("--without-kernels", action="store_true", help="as if none were built: the same time as torch.nn is wanted")
    add("--out", type=Path, default=Path("runs/bench.json"), help="results go here (default: %(default)s)")
    add("--against", type=Path, metavar="DIR", help="instead: time another checkout's fusedrnn and this one")
    args = parser.parse_args(argv)
    fewest = [1] if args.device == "cuda" else [min(2, cores)] if args.quick else [1, min(2, cores)]
    args.threads = sorted(set(args.threads or fewest))
    args.seconds = args.seconds or (0.25 if args.quick else 0.4)
    if args.device == "cuda":
        os.environ["FUSEDRNN_CUDNN"] = "0"  # the kernels are timed, beside cuDNN
    if args.device == "cuda" and not (torch.cuda.is_available() or args.list):
        parser.error("--device cuda: torch finds no GPU")
    if args.against and (args.device == "cuda" or not (args.against / "fusedrnn").is_dir()):
        parser.error(f"--against needs --device cpu and a folder with fusedrnn in it, got {args.against}")
    try:
        args.only = re.compile(args.only)
    except re.error as problem:
        parser.error(f"--only is not a regular expression: {problem}")
    return args


@functools.lru_cache(maxsize=1)
def prepared(shape: Shape, device: str) -> tuple[Work, dict[str, list[torch.Tensor]]]:
    """The work, and for each call its results in float64: those of forward are the first of training's."""
    work, call = Work(shape, device), shape.calls[-1]
    with torch.set_grad_enabled(call == "training"):
        exact = tensors(contender(work.double(), "torch", call)())
    gradients = 1 + len(list(work.torch_module.parameters())) if call == "training" else 0
    return work, {"forward": exact[: len(exact) - gradients], "training": exact}


def compare(shape: Shape, call: str, threads: int, args: argparse.Namespace) -> dict:
    """An entry of the results."""
    work, exact = prepared(shape, args.device)
    limit = AGREEMENT["TF32" if (args.device, shape.dtype) == ("cuda", "float32") else shape.dtype]
    everyone = ("fusedrnn", *(OTHERS if args.device == "cpu" else OTHERS[:1]))
    with torch.set_grad_enabled(call == "training"):
        runs = {who: run for who in everyone if (run := contender(work, who, call, threads))}
        errors = {who: error(tensors(run()), exact[call]) for who, run in runs.items()}
        for who, value in errors.items():
            if not value <= limit:
                raise AssertionError(f"{shape.name}, {call}: {who} is off by {value:.2g} from float64")
        samples = timing.alternate(runs, args.seconds, timing.CLOCKS[args.device])
    peak = timing.gemm_peak(shape.dtype, args.device)
    least = roofline.milliseconds(shape, call, threads, 1e9 * peak) if args.device == "cpu" else None
    contenders = {}
    for who, taken in samples.items():
        ratios = [theirs / ours for theirs, ours in zip(taken, samples["fusedrnn"], strict=True)]
        contenders[who] = {"ms": timing.quartiles([1e3 * s for s in taken]), "error": errors[who]}
        contenders[who] |= {"rounds": len(ratios), "speedup": timing.quartiles(ratios)}
    return {"gflop": shape.flops(call) / 1e9, "peak": peak, "roofline": least, "contenders": contenders}


def against(shape: Shape, call: str, threads: int, args: argparse.Namespace) -> dict:
    """Both checkouts, each in its worker process, in rounds of the order old, new, new, old."""
    runs = {which: lambda count=1, ask=ask: ask("sample", count) for which, ask in args.workers.items()}
    for ask in args.workers.values():
        ask("prepare", shape.name, call, threads)
    samples = timing.alternate(runs, args.seconds, lambda run, count: run(count), least=6, shortest=0.03)
    results = {which: timing.quartiles([1e3 * s for s in taken]) for which, taken in samples.items()}
    return results | {"ratio": timing.quartiles([b / a for a, b in zip(samples["old"], samples["new"], strict=True)])}


def memory(shape: Shape, call: str, threads: int, args: argparse.Namespace) -> dict:
    """Bytes. malloc returns large blocks to the system at once, so that no free list hides them."""

    def peak(who):
        with worker(report.ROOT, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536") as ask:
            return ask("memory", shape.name, who, call, threads)

    return {who: peak(who) for who in ("fusedrnn", "torch")}


def contention(shape: Shape, call: str, threads: int, args: argparse.Namespace) -> dict:
    """The slowdown of each while every core runs another process too: the mean, since a call then takes its usual time
    or many times as long."""
    with torch.no_grad():
        runs = {who: contender(Work(shape), who, call) for who in ("fusedrnn", "torch")}
        for run in runs.values():
            run()
        alone = timing.alternate(runs, args.seconds)
        with contextlib.ExitStack() as busy:
            for _ in range(os.cpu_count() or 1):
                busy.callback(subprocess.Popen([sys.executable, "-c", "while True: pass"]).kill)
            beside = timing.alternate(runs, max(2.0, 2 * args.seconds))
    return {who: statistics.fmean(beside[who]) / statistics.median(alone[who]) for who in runs}


def reset(shape: Shape, call: str, threads: int, args: argparse.Namespace) -> dict:
    """The time of a call with reset= relative to one without."""
    shapes = {form: dataclasses.replace(shape, form=form) for form in ("reset", "padded")}
    runs = {form: contender(Work(s, args.device), "fusedrnn", call) for form, s in shapes.items()}
    for run in runs.values():
        run()
    samples = timing.alternate(runs, args.seconds, timing.CLOCKS[args.device])
    return {"fusedrnn": statistics.median(a / b for a, b in zip(*samples.values(), strict=True))}


SECTIONS = {"results": compare, "against": against, "reset": reset, "contention": contention, "memory": memory}


Item = tuple[str, Shape, str, int]  # section, shape, call, threads


def plan(args: argparse.Namespace) -> dict[str, Item]:
    """Everything to be measured, by name."""
    todo = plan_of_calls(args)
    if args.device == "cpu" and not args.against:
        todo += plan_of_processes(args)
    names = {name_of(item): item for item in todo}
    return {name: item for name, item in names.items() if args.only.search(name) or args.only.search(item[1].source)}


def plan_of_calls(args: argparse.Namespace) -> list[Item]:
    shapes = [shape for shape in SHAPES[args.device] if shape.quick or not args.quick]
    section = "against" if args.against else "results"
    todo = [(section, shape, call, n) for shape in shapes for n in args.threads for call in shape.calls]
    resets = [s for s in shapes if s.form == "reset" and not args.against]
    return todo + [("reset", s, "training", n) for s in resets for n in args.threads]


def plan_of_processes(args: argparse.Namespace) -> list[Item]:
    """Contention with busy processes, and memory, which is measured in a separate process."""
    shapes, most = {shape.name: shape for shape in SHAPES[args.device]}, args.threads[-1]
    todo = [("contention", shapes[CONTENTION], "forward", most)]
    if os.access("/proc/self/clear_refs", os.W_OK):
        todo += [("memory", shapes[m], c, most) for m in MEMORY[: 1 if args.quick else 2] for c in shapes[m].calls]
    return todo


def name_of(item: Item) -> str:
    section, shape, call, threads = item
    prefix = f"{section}/" if section in ("reset", "contention", "memory") else ""
    return f"{prefix}{shape.name}/{call}/{threads}"


def execute(todo: dict, args: argparse.Namespace, run: dict) -> int:
    """Fills run; the exit status."""
    with tqdm(todo.items(), unit="", dynamic_ncols=True, smoothing=0) as bar:
        for name, (section, shape, call, threads) in bar:
            bar.set_description(name)
            torch.set_num_threads(threads)
            try:
                result = SECTIONS[section](shape, call, threads, args)
            except KeyboardInterrupt:
                bar.write("Interrupted; what was measured so far:")
                return 130
            except AssertionError as problem:
                bar.write(f"WRONG RESULTS: {problem}. Nothing after this was timed.")
                return 1
            about = {"name": shape.name, "call": call, "threads": threads, "shape": dataclasses.asdict(shape)}
            run[section].append(about | result)
            bar.write(report.line(section, run[section][-1]))
    return 0


def main(argv: list[str] | None = None) -> int:
    args = options(argv)
    todo = plan(args)
    if not todo:
        sys.exit("bench: --only matches nothing; --list prints what there is")
    if args.list:
        print("\n".join(f"{name:<60}{shape.source}" for name, (_, shape, *_) in todo.items()))
        return 0
    machine = report.machine(args.device)
    if machine["isa"] == "none":
        sys.exit("bench: the compiled extension is not in use; python -m fusedrnn.info says why")
    if args.without_kernels:
        fusedrnn.backends.extension._C, machine["isa"] = None, "without kernels"
    if machine["load average"] > machine["cores"] / 2:
        print(f"WARNING: load average {machine['load average']} on {machine['cores']} cores: others may disturb this")
    if absent := [who for who in INFERENCE if not find_spec(who)]:
        print(f"Not installed, so not compared with: {', '.join(absent)} (pip install 'fusedrnn[bench]')")
    run = {"machine": machine, "seconds": args.seconds, **{section: [] for section in SECTIONS}}
    warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")  # concerns torch.nn
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was measured so far is kept
    with contextlib.ExitStack() as stack:
        if args.against:
            run["against commit"] = report.commit(args.against)
            checkouts = {"old": args.against.resolve(), "new": report.ROOT}
            args.workers = {which: stack.enter_context(worker(at)) for which, at in checkouts.items()}
        status = execute(todo, args, run)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(run, indent=1) + "\n")
    print(f"\n{machine['cpu']}, {machine['cores']} cores, {machine['isa']}; torch {machine['versions']['torch']}")
    print(f"{report.means(run)}\n\nResults: {args.out}")
    return status


if __name__ == "__main__":
    sys.exit(main())
