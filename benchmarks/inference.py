"""Times packed weights beside unpacked ones, torch.nn, ONNX Runtime and the int8 of both, in alternation.

    python benchmarks/inference.py                           every shape, one thread
    python benchmarks/inference.py --only GRU --seconds 3
    python benchmarks/inference.py --only 1x1 --out runs/inference.json

Each line gives our time with float32 packed, the least time in which the processor can read W_hh once a step, how many
times as fast each other contender's time is ours (above 1: ours is faster), and errors: the root mean square of the
difference from float64, relative to that of the output. ONNX Runtime reads and writes bound buffers.
"""

import argparse
import copy
import itertools
import json
import math
import os
import re
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy
import report
import roofline
import timing
import torch
from contenders import Work, _onnx
from shapes import Shape
from torch import Tensor, nn
from tqdm import tqdm

import fusedrnn

SIZES = [(1, 1, 128), (1, 1, 512), (1, 1, 1024), (100, 1, 128), (100, 1, 512), (50, 4, 256), (30, 16, 320)]
SHAPES = [Shape(cell, T, N, H, H, "inference") for cell, (T, N, H) in itertools.product(("LSTM", "GRU", "RNN"), SIZES)]
FORMS = ("float32", "bfloat16", "float16", "int8")
OURS = {"float32": ("unpacked", "onnxruntime", "torch"), "int8": ("float32", "onnxruntime int8", "torch int8")}
OURS |= {"bfloat16": ("float32",), "float16": ("float32",), "stream": ("onnxruntime", "float32")}


def bound_session(model: bytes, inputs: dict, threads: int) -> Callable:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
    for output in session.get_outputs():
        binding.bind_output(output.name)

    def run() -> Tensor:
        session.run_with_iobinding(binding)
        return binding

    return run


def quantised(model: bytes) -> bytes:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        plain, small = Path(folder) / "plain.onnx", Path(folder) / "small.onnx"
        plain.write_bytes(model)
        quantize_dynamic(plain, small, weight_type=QuantType.QInt8)
        return small.read_bytes()


def contenders(work: Work, threads: int) -> dict[str, Callable]:
    """What each runs: a call that returns its output, or a binding that holds it."""
    fused, x, cell = work.fused_module.eval(), work.x, work.shape.cell
    runs = {"unpacked": lambda: fused(x)[0], "torch": lambda: work.torch_module(x)[0]}
    for form in FORMS:
        packed = fusedrnn.optimize_for_inference(fused, form)
        runs[form] = lambda packed=packed: packed(x)[0]
    if hasattr(fusedrnn, "Stream") and work.shape.T == 1:
        stream = fusedrnn.Stream(fusedrnn.optimize_for_inference(fused))
        frame = x[0]
        runs["stream"] = lambda: stream(frame)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's dynamic quantisation is deprecated
        model, inputs = _onnx(work)
        runs["onnxruntime"] = bound_session(model, inputs, threads)
        if cell == "LSTM":
            runs["onnxruntime int8"] = bound_session(quantised(model), inputs, threads)
        if cell != "RNN":
            small = torch.ao.quantization.quantize_dynamic(
                nn.Sequential(copy.deepcopy(work.torch_module)), {getattr(nn, cell)}, torch.qint8
            )[0]
            runs["torch int8"] = lambda: small(x)[0]
    return runs


def output_of(result) -> Tensor:
    if not isinstance(result, Tensor):
        result = torch.from_numpy(numpy.asarray(result.copy_outputs_to_cpu()[0]))
    return result.double()


def error(result, exact: Tensor) -> float:
    return ((output_of(result).reshape(exact.shape) - exact).norm() / exact.norm()).item()


def measure(shape: Shape, threads: int, seconds: float) -> dict:
    work = Work(shape)
    exact = work.double().torch_module(work.x.double())[0]
    runs = contenders(work, threads)
    errors = {who: error(run(), exact) for who, run in runs.items()}
    samples = timing.alternate(runs, seconds)
    weights = 4 * shape.recurrent_weights + (4 * shape.gates * shape.H * shape.I if shape.T == 1 else 0)
    floor = shape.T * weights / roofline.reads(weights, threads) if roofline.loops() else math.nan
    ratios = {
        ours: {
            who: timing.quartiles([b / a for a, b in zip(samples[ours], samples[who], strict=True)]) for who in others
        }
        for ours, all_others in OURS.items()
        if ours in samples and (others := [who for who in all_others if who in samples])
    }
    times = {who: timing.quartiles(taken) for who, taken in samples.items()}
    return {"name": shape.name, "seconds": times, "floor": floor, "errors": errors, "ratios": ratios}


def line(result: dict) -> str:
    text = f"{result['name']:<24} {1e6 * result['seconds']['float32'][1]:9.1f} us (reads {1e6 * result['floor']:.1f})"
    for ours, others in result["ratios"].items():
        pairs = ", ".join(f"{who} {middle:.2f} [{low:.2f}-{high:.2f}]" for who, (low, middle, high) in others.items())
        text += f"\n    {ours:<9} over {pairs}"
    return text + "\n    errors   " + ", ".join(f"{who} {e:.1e}" for who, e in result["errors"].items())


def means(results: list[dict]) -> str:
    found: dict[tuple[str, str], list[float]] = {}
    for result in results:
        for ours, others in result["ratios"].items():
            for who, (_, middle, _) in others.items():
                found.setdefault((ours, who), []).append(middle)
    lines = (
        f"  {ours:<9} over {who:<17} {statistics.geometric_mean(v):.2f} (least {min(v):.2f}, of {len(v)})"
        for (ours, who), v in found.items()
    )
    return "\n".join(["Geometric means:", *lines])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="REGEX", help="only the shapes whose name matches")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each shape (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/inference.json"), help="(default: %(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    results, machine = [], report.machine("cpu")
    with torch.no_grad(), tqdm([s for s in SHAPES if re.search(args.only, s.name)], dynamic_ncols=True) as bar:
        for shape in bar:
            bar.set_description(shape.name)
            results.append(measure(shape, args.threads, args.seconds))
            bar.write(line(results[-1]))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"machine": machine, "threads": args.threads, "results": results}, indent=1) + "\n")
    print(f"\n{machine['cpu']}, {machine['isa']}, {args.threads} of {os.cpu_count()} cores\n{means(results)}")


if __name__ == "__main__":
    main()
