"""Times fusedrnn on named shapes beside torch.nn, a Python loop, ONNX Runtime and OpenVINO, in turns, in one process.

Before anything is timed its results are compared with float64; a disagreement ends the run. The last thing printed is
the table of what was promised, beside what was measured; ! marks what falls short, ^ what would fall short even at the
roof of this processor (roof.py; one step has none, as the call takes most of its time: means have it as measured).

    python benchmarks/bench.py                     everything, under 10 minutes on two cores
    python benchmarks/bench.py --quick             a part of it, under a minute
    python benchmarks/bench.py --only 'GRU.*/training/2' --seconds 3      or --only speech
    python benchmarks/bench.py --compare benchmarks/results/old.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import signal
import statistics
import sys
import warnings
from pathlib import Path

import measure
import memory
import report
import roof
import torch
from peers import INFERENCE, PEERS, Work, contender, error, installed, tensors
from shapes import CALLS, SHAPES, Shape
from tqdm import tqdm

# How far anyone's results may be from float64, relative to the largest element. Gradients of hundreds of steps are sums
# of hundreds of rounded terms; a wrong formula is off by 1e-1 and more in any dtype.
AGREEMENT = {"float64": 1e-11, "float32": 2e-4, "float16": 2e-2, "bfloat16": 1e-1}
MEMORY = ("LSTM-fp32-100x64x512x512", "LSTM-bf16-100x64x512x512")
CONTENTION = "LSTM-fp32-100x64x128x128"


def options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, cores = parser.add_argument, os.cpu_count() or 1
    add("--quick", action="store_true", help="fewer shapes, all cores only, less time for each")
    add("--only", default="", metavar="REGEX", help="only those whose name or source, as --list prints them, matches")
    add("--list", action="store_true", help="print the names of all that would be timed, and where they come from")
    add("--threads", type=int, nargs="+", help=f"numbers of threads (default: 1 and {min(2, cores)})")
    add("--seconds", type=float, help="time for each set of contenders (default: 0.4, with --quick 0.25)")
    add("--peers", nargs="+", choices=PEERS, default=PEERS, help="(default: all; torch.nn is always there)")
    add("--out", type=Path, default=Path("runs/bench.json"), help="results go here (default: %(default)s)")
    add(
        "--compare", type=Path, metavar="OLD.json", help="say what got slower since then; exit status 1 if anything did"
    )
    args = parser.parse_args(argv)
    args.threads = sorted(set(args.threads or ([min(2, cores)] if args.quick else {1, min(2, cores)})))
    if args.threads[0] < 1:
        parser.error(f"--threads must be at least 1, got {args.threads[0]}")
    args.seconds = args.seconds or (0.25 if args.quick else 0.4)
    try:
        args.only = re.compile(args.only)
    except re.error as problem:
        parser.error(f"--only is not a regular expression: {problem}")
    if args.compare:
        try:
            args.compare = json.loads(args.compare.read_text())
        except (OSError, ValueError) as problem:
            parser.error(f"--compare: {problem}")
    return args


def calls_of(shape: Shape) -> tuple[str, ...]:
    return {"step": ("forward",), "reset": ("training",), "lengths": ("training",)}.get(shape.form, CALLS)


class Disagreement(Exception):
    """Somebody computed something else."""


class Timed:
    """A shape, with its exact results, ready to be timed in several ways."""

    def __init__(self, shape: Shape, peers):
        self.shape, self.peers, self.work = shape, ("fusedrnn", *peers), Work(shape)
        with torch.set_grad_enabled("training" in calls_of(shape)):
            self.exact = tensors(contender(self.work.double(), "torch", calls_of(shape)[-1])())

    def run(self, call: str, threads: int, seconds: float) -> dict:
        torch.set_num_threads(threads)
        with torch.set_grad_enabled(call == "training"):
            found = {who: contender(self.work, who, call, threads) for who in self.peers}
            found = {who: function for who, function in found.items() if function}
            errors = {who: error(tensors(function()), self.exact_of(call)) for who, function in found.items()}
            for who, value in errors.items():
                if not value <= AGREEMENT[self.shape.dtype]:
                    raise Disagreement(f"{self.shape.name}, {call}: {who} is off by {value:.2g} from float64")
            products = measure.products(self.shape.dtype) if self.shape.nears_peak else {}
            samples = measure.alternate(found | products, seconds)
        peak = measure.peak_in(samples) if products else measure.gemm_peak(self.shape.dtype, threads)
        result = {"gflop": self.shape.flops(call) / 1e9, "peak": peak}
        result["roof"] = roof.milliseconds(self.shape, call, threads, 1e9 * peak)
        return result | {"contenders": {who: self.judged(who, samples, errors[who]) for who in found}}

    def exact_of(self, call: str) -> list[torch.Tensor]:
        """Of forward: those before the gradients."""
        states = 2 if "LSTM" in self.shape.cell else 1
        outputs = states if self.shape.is_cell_module else 1 + states
        return self.exact if call == "training" else self.exact[:outputs]

    def judged(self, who: str, samples: dict, error: float) -> dict:
        ratios = [theirs / ours for theirs, ours in zip(samples[who], samples["fusedrnn"], strict=True)]
        found = {"ms": measure.quartiles([1e3 * s for s in samples[who]]), "error": error, "rounds": len(ratios)}
        return found | ({} if who == "fusedrnn" else {"speedup": measure.quartiles(ratios)})


def memory_of(shape: Shape, call: str, threads: int) -> dict:
    """Bytes."""
    return {who: memory.peak_extra(shape, who, call, threads) for who in ("fusedrnn", "torch")}


def contention_of(shape: Shape, threads: int, seconds: float) -> dict:
    """How many times slower each becomes when every core has another process to run.

    Beside others, a call takes its usual time or many times as long: the mean counts, not the median.
    """
    torch.set_num_threads(threads)
    work = Work(shape)
    with torch.no_grad():
        found = {who: contender(work, who, "forward") for who in ("fusedrnn", "torch")}
        for function in found.values():
            function()
        alone = measure.alternate(found, seconds)
        with measure.busy_processes(os.cpu_count() or 1):
            beside = measure.alternate(found, max(2.0, 2 * seconds))
    return {who: statistics.fmean(beside[who]) / statistics.median(alone[who]) for who in found}


def cost_of_reset(shape: Shape, threads: int, seconds: float) -> dict:
    """How many times as long a call takes with reset= as without."""
    torch.set_num_threads(threads)
    without = dataclasses.replace(shape, form="padded")
    found = {who: contender(Work(s), "fusedrnn", "training") for who, s in (("with", shape), ("without", without))}
    for function in found.values():
        function()
    samples = measure.alternate(found, seconds)
    ratios = [a / b for a, b in zip(samples["with"], samples["without"], strict=True)]
    return {"fusedrnn": statistics.median(ratios)}


def plan(args: argparse.Namespace) -> list[tuple[str, Shape, str, int]]:
    """(section, shape, call, threads) of all that is to be done."""
    shapes = [shape for shape in SHAPES if shape.quick or not args.quick]
    found = [("results", shape, call, n) for shape in shapes for n in args.threads for call in calls_of(shape)]
    special = {shape.name: shape for shape in SHAPES if shape.name in (*MEMORY, CONTENTION)}
    resets = [shape for shape in shapes if shape.form == "reset"]
    found += [("reset", shape, "training", n) for shape in resets for n in args.threads]
    found.append(("contention", special[CONTENTION], "forward", args.threads[-1]))
    if memory.supported():
        wanted = MEMORY[:1] if args.quick else MEMORY
        found += [("memory", special[name], call, args.threads[-1]) for name in wanted for call in CALLS]
    return [item for item in found if args.only.search(title(*item)) or args.only.search(item[1].source)]


def title(section: str, shape: Shape, call: str, threads: int) -> str:
    return f"{'' if section == 'results' else section + '/'}{shape.name}/{call}/{threads}"


def warn(machine: dict) -> None:
    if (machine["busy"] or 0) > 0.1 or machine["load average"] > machine["cores"]:
        print(
            f"WARNING: this machine is not idle: load average {machine['load average']}, "
            f"others use {machine['busy'] or 0:.0%} of it now. These timings are not to be relied on.",
            file=sys.stderr,
        )


def execute(todo: list, args: argparse.Namespace, run: dict) -> int:
    """Fills run; the exit status."""
    timed, peers = None, ["torch", *(who for who in args.peers if who != "torch")]
    with tqdm(todo, unit="", dynamic_ncols=True, smoothing=0) as bar:
        try:
            for item in bar:
                section, shape, call, threads = item
                bar.set_description(title(*item))
                if section == "results":
                    if timed is None or timed.shape != shape:
                        timed = None  # the one before is freed first
                        timed = Timed(shape, peers)
                    result = timed.run(call, threads, args.seconds)
                elif section == "reset":
                    result = cost_of_reset(shape, threads, args.seconds)
                elif section == "contention":
                    result = contention_of(shape, threads, args.seconds)
                else:
                    result = memory_of(shape, call, threads)
                about = {"name": shape.name, "call": call, "threads": threads, "shape": dataclasses.asdict(shape)}
                run[section].append(about | result)
                bar.write(report.line(section, run[section][-1]))
        except KeyboardInterrupt:
            bar.write("Interrupted; what was measured so far:")
            return 130
        except Disagreement as problem:
            bar.write(f"WRONG RESULTS: {problem}. Nothing after this was timed.")
            return 1
    return 0


def main(argv: list[str] | None = None) -> int:
    args = options(argv)
    todo = plan(args)
    if not todo:
        sys.exit("bench: --only matches nothing; --list prints what there is")
    if args.list:
        for item in todo:
            print(f"{title(*item):<60}{item[1].source}")
        return 0
    machine = report.machine()
    if machine["isa"] == "none":
        sys.exit("bench: the compiled extension is not in use; python -m fusedrnn.info says why")
    warn(machine)
    run = {"machine": machine, "seconds": args.seconds, **{section: [] for section in report.SECTIONS}}
    absent = [who for who in args.peers if who in INFERENCE and not installed(who)]
    if absent:
        print(f"Not installed, so not compared with: {', '.join(absent)} (pip install 'fusedrnn[bench]')")
    warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")  # a fact about torch.nn
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was measured so far is kept
    status = execute(todo, args, run)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(run, indent=1) + "\n")
    print(f"\n{machine['cpu']}, {machine['cores']} cores, {machine['isa']}; torch {machine['versions']['torch']}")
    print(f"{report.summary(run)}\n\nResults: {args.out}")
    if args.compare:
        slower = report.compare(run, args.compare)
        print("\n".join(slower or ["Nothing got slower."]))
        status = status or int(bool(slower))
    return status


if __name__ == "__main__":
    sys.exit(main())
