"""The benchmark without its clock: shapes can be built, contenders agree, and reports follow from the results."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import bench
import custom_cells
import pytest
import report
import roofline
import timing
import torch
from contenders import INFERENCE, OTHERS, Work, contender, error, tensors
from shapes import CALLS, SHAPES, Shape
from tolerances import assert_same

from fusedrnn.backends import extension

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "epyc.json"


def small(shape: Shape) -> Shape:
    """The same work with fewer steps and units."""
    H = min(shape.H, 8)
    return dataclasses.replace(
        shape, T=min(shape.T, 12), N=min(shape.N, 3), I=min(shape.I, 5), H=H, proj=min(shape.proj, H // 2)
    )


SMALL = list({shape.name: shape for device in SHAPES for shape in map(small, SHAPES[device])}.values())


@pytest.mark.parametrize("device", SHAPES)
def test_names_are_told_apart(device):
    names = [shape.name for shape in SHAPES[device]]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("shape", SMALL, ids=lambda s: s.name)
def test_whoever_can_compute_a_shape_agrees_with_float64(shape, call):
    work = Work(shape)
    with torch.set_grad_enabled(call == "training"):
        exact = tensors(contender(work.double(), "torch", call)())
        actual = {who: contender(work, who, call) for who in ("fusedrnn", *OTHERS)}
        errors = {who: error(tensors(run()), exact) for who, run in actual.items() if run}
    assert {"fusedrnn", "torch"} <= set(errors)
    assert ("loop" in errors) == shape.loop
    standard = call == "forward" and shape.form in ("padded", "step") and not shape.proj and not shape.is_cell_module
    for who, dtypes in INFERENCE.items():
        assert (who in errors) == (standard and shape.dtype in dtypes and find_spec(who) is not None)
    assert all(value <= bench.AGREEMENT[shape.dtype] for value in errors.values()), errors


@pytest.mark.skipif(not find_spec("onnxruntime"), reason="onnxruntime is not installed")
@pytest.mark.parametrize("layers, directions", [(1, 1), (2, 2)])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_the_onnx_model_is_the_module(cell, layers, directions):
    work = Work(Shape(cell, 7, 3, 5, 6, "", layers=layers, directions=directions))
    with torch.no_grad():
        exact = tensors(contender(work.double(), "torch", "forward")())
    assert error(tensors(contender(work, "onnxruntime", "forward")()), exact) < 1e-6


def test_a_wrong_result_ends_the_run(monkeypatch, tmp_path, capsys):
    wrong = lambda run: lambda: [t + 0.01 for t in tensors(run())]  # noqa: E731
    monkeypatch.setattr(
        bench,
        "contender",
        lambda work, who, *args: (wrong if who == "fusedrnn" else lambda run: run)(contender(work, who, *args)),
    )
    monkeypatch.setattr(bench, "plan", lambda args: {"wrong": ("results", Shape("GRU", 5, 2, 3, 4, ""), "forward", 1)})
    assert bench.main(["--out", str(tmp_path / "out.json")]) == 1
    assert "fusedrnn is off by 0.01" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["results"] == []


def test_contenders_are_timed_in_turns_until_the_time_is_over():
    calls, time = [], iter(range(1000))
    clock = lambda call, count: [call(), next(time)][1] * 1e-3 + timing.WARM  # noqa: E731
    who = {name: lambda name=name: calls.append(name) for name in "ab"}
    samples = timing.alternate(who, seconds=0, clock=clock, least=4)
    assert {name: len(s) for name, s in samples.items()} == {"a": 4, "b": 4}
    rounds = ["".join(calls[k : k + 2]) for k in range(0, len(calls), 2)]
    assert set(rounds) == {"ab", "ba"}


def test_a_long_first_call_is_a_sample_and_a_short_one_is_not():
    durations = {"short": 0.01, "long": 1.0}
    made = []
    clock = lambda call, count: [made.append((call(), count)), durations[call()]][1]  # noqa: E731
    samples = timing.alternate({who: lambda who=who: who for who in durations}, 0, clock=clock, least=2)
    assert {who: len(s) for who, s in samples.items()} == {"short": 2, "long": 2}
    assert [who for who, _ in made].count("long") == 2
    assert [who for who, _ in made].count("short") == 3


def test_the_peak_is_the_best_size_of_each_round_and_the_median_of_the_rounds(monkeypatch):
    def alternate(products, *args, **options):
        assert list(products) == list(timing.SIZES["cpu"])
        samples = {size: [2e-9 * size**3 / rate for rate in (10, 30, 20)] for size in products}  # GFLOP/s
        samples[1024][2] /= 2
        return samples

    monkeypatch.setattr(timing, "alternate", alternate)
    assert timing.gemm_peak("float32") == pytest.approx(30)


def test_flops_count_the_rows_that_are_there():
    shape = Shape("LSTM", 10, 2, 3, 4, "", layers=2, directions=2)
    assert shape.flops("forward") == 2 * 20 * 2 * 4 * 4 * ((3 + 4) + (8 + 4))
    assert shape.flops("training") == 3 * shape.flops("forward")
    ragged = dataclasses.replace(shape, T=30, form="packed")
    assert ragged.lengths().tolist() in ([10, 30], [30, 10])
    assert ragged.flops("forward") == 2 * shape.flops("forward")


def result(speedup, shape=SHAPES["cpu"][0], ms=1.0, **contenders):
    def timed(value):
        spread = 0.98, 1.0, 1.02
        return {"ms": [ms * k for k in spread], "error": 1e-7, "speedup": [value * k for k in spread]}

    actual = {"fusedrnn": timed(1.0)} | {who: timed(value) for who, value in {"torch": speedup, **contenders}.items()}
    shape = {"name": shape.name, "call": "forward", "threads": 1, "shape": dataclasses.asdict(shape)}
    return shape | {"gflop": 1.0, "peak": 2000.0, "roofline": 0.4, "contenders": actual}


def run(*results):
    return {"machine": {"cpu": "a processor"}, **{section: [] for section in bench.SECTIONS}, "results": list(results)}


def test_means_are_geometric_and_of_the_grid():
    grid = [shape for shape in SHAPES["cpu"] if (shape.cell, shape.dtype, shape.source) == ("GRU", "float32", "grid")]
    other = next(shape for shape in SHAPES["cpu"] if shape.form == "packed")
    said = report.means(run(result(1.0, grid[0]), result(4.0, grid[1], openvino=0.5), result(9.0, other)))
    assert re.search(r"as torch 2\.000 \(of 2\)\n.*as openvino 0\.500 \(of 1\)$", said)


def test_means_of_another_checkout_are_of_each_dtype_and_number_of_threads():
    def ratio(value, dtype, threads):
        return {"shape": {"dtype": dtype}, "threads": threads, "ratio": [value * k for k in (0.9, 1.0, 1.1)]}

    pairs = [ratio(0.5, "float32", 1), ratio(0.98, "bfloat16", 1), ratio(0.125, "float32", 1), ratio(1.5, "float32", 2)]
    said = report.means(run() | {"against": pairs}).splitlines()[1:]
    assert [line.split()[-3] for line in said] == ["0.250", "0.394", "0.980", "1.500", "1.500"]
    assert [line.split()[0] for line in said] == ["float32", "every", "bfloat16", "float32", "every"]


def test_each_result_is_a_line():
    said = report.line("results", result(1.5, openvino=0.9))
    assert re.search(r"1\.000 ms +1000 GFLOP/s +50% \(1e-07\)  torch 1\.50x \[1\.47-1\.53\]", said)
    assert "openvino 0.90x" in said
    pair = result(1.0) | {"old": [1.9, 2.0, 2.1], "new": [0.9, 1.0, 1.1], "ratio": [0.4, 0.5, 0.6]}
    assert "2.000 -> 1.000 ms  new/old 0.500 [0.400-0.600]" in report.line("against", pair)
    assert "MiB: fusedrnn 1.00, torch 3.00" in report.line(
        "memory", result(1.0) | {"fusedrnn": 1 << 20, "torch": 3 << 20}
    )


def test_the_roofline_multiplies_and_reads_at_the_pace_of_the_loops(monkeypatch):
    monkeypatch.setattr(roofline, "loops", lambda: "compiled")
    monkeypatch.setattr(
        roofline, "operations", lambda dtype, threads: {"float32": 1e9, "bfloat16": 2e9}[dtype] * threads
    )
    monkeypatch.setattr(roofline, "reads", lambda size, threads: 1e9 * threads)
    many, row = Shape("LSTM", 50, 64, 128, 128, ""), Shape("GRU", 50, 1, 16, 32, "", layers=2, directions=2)
    assert roofline.milliseconds(many, "forward", 2, 0) == pytest.approx(1e3 * many.flops("forward") / 2e9)
    assert roofline.milliseconds(many, "forward", 2, 8e9) == pytest.approx(1e3 * many.flops("forward") / 8e9)
    # of one row, reading W_hh takes longer than to multiply by it: 4 bytes for 2 operations
    weights, passes = 2 * 3 * 32 * 32, 2 * 2
    seconds = passes * 50 * weights * 4 / 1e9 + (row.flops("training") - passes * 50 * weights * 2) / 1e9
    assert roofline.milliseconds(row, "training", 1, 0) == pytest.approx(1e3 * seconds)
    half = dataclasses.replace(row, dtype="bfloat16")
    assert roofline.milliseconds(half, "training", 1, 0) == pytest.approx(1e3 * seconds / 2)
    assert roofline.milliseconds(dataclasses.replace(row, T=1), "forward", 1, 0) is None


@pytest.mark.skipif(extension._C is None, reason="what compiles the loops compiles the kernels, which are missing")
def test_the_loops_of_the_roofline_run(monkeypatch):
    monkeypatch.setattr(roofline, "SECONDS", 1e-3)
    for rate in (roofline.operations.__wrapped__("bfloat16", 2), roofline.reads.__wrapped__(1 << 16, 1)):
        assert 1e8 < rate < 1e14


def test_the_plan_has_what_was_asked_for():
    whole = bench.plan(bench.options([]))
    assert {section for section, *_ in whole.values()} == set(bench.SECTIONS) - {"against"}
    assert {*bench.MEMORY, bench.CONTENTION} <= {shape.name for _, shape, *_ in whole.values()}
    assert set(bench.plan(bench.options(["--quick"]))) < set(whole)
    assert {*CALLS} == {call for _, _, call, _ in whole.values()}
    only = bench.plan(bench.options(["--only", "^GRU.*bf16.*training/1$|speech", "--threads", "1"]))
    assert all(name.startswith("GRU-bf16") or "speech" in item[1].source for name, item in only.items()) and only
    against = bench.plan(bench.options(["--against", str(ROOT)]))
    assert {section for section, *_ in against.values()} == {"against"}
    assert set(against) == {name for name, item in whole.items() if item[0] == "results"}


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--threads", "0"], "--threads: invalid choice: 0"),
        (["--only", "("], "--only is not a regular expression"),
        (["--against", "no/such/folder"], "--against needs"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(arguments, reason, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench.main(arguments)
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("script", ["bench", "plot", "worker"])
@pytest.mark.slow
def test_help(script):
    command = [sys.executable, ROOT / "benchmarks" / f"{script}.py", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"usage: {script}.py")


def small_run(tmp_path, *more):
    pytest.importorskip("tqdm")
    command = [sys.executable, ROOT / "benchmarks" / "bench.py", "--only", "^LSTM-fp32-1x1x128x128/forward/1$", *more]
    command += ["--threads", "1", "--seconds", "0.01", "--out", tmp_path / "out.json"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    return done, json.loads((tmp_path / "out.json").read_text()) if done.returncode == 0 else None


@pytest.mark.slow
def test_a_small_run_from_end_to_end(tmp_path):
    done, actual = small_run(tmp_path)
    assert done.returncode == 0, done.stderr
    (one,) = actual["results"]
    assert (one["name"], one["call"], one["threads"]) == ("LSTM-fp32-1x1x128x128", "forward", 1)
    assert {"fusedrnn", "torch"} <= set(one["contenders"])
    assert re.search(r"LSTM float32 forward 1t +times as fast as torch", done.stdout)
    assert {"cpu", "cores", "isa", "load average", "commit", "versions"} <= set(actual["machine"])


@pytest.mark.slow
def test_two_checkouts_alternate(tmp_path):
    done, actual = small_run(tmp_path, "--against", str(ROOT))
    assert done.returncode == 0, done.stderr
    (one,) = actual["against"]
    assert 0.2 < one["ratio"][1] < 5 and one["old"][1] > 0
    assert actual["results"] == [] and re.search(r"every dtype +1t  new/old \d", done.stdout)


@pytest.mark.slow
def test_a_checkout_that_is_not_compiled_is_refused(tmp_path):
    shutil.copytree(ROOT / "fusedrnn", tmp_path / "fusedrnn", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    done, _ = small_run(tmp_path, "--against", str(tmp_path))
    assert done.returncode == 1 and "is not compiled" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_memory_of_a_call_is_seen():
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("only Linux tells")
    shape = next(shape for shape in SHAPES["cpu"] if shape.name == "LSTM-fp32-100x64x128x128")
    actual = bench.memory(shape, "forward", 1, None)
    output = 100 * 64 * 128 * 4
    assert all(output < count < 40 * output for count in actual.values()), actual


@pytest.mark.parametrize("source", ["made up", "recorded"])
@pytest.mark.slow
def test_results_can_be_drawn(source, tmp_path):
    plot = pytest.importorskip("plot", reason="matplotlib is not installed")
    path = RESULTS
    if source == "made up":
        packed = next(shape for shape in SHAPES["cpu"] if shape.form == "packed")
        path = tmp_path / "run.json"
        path.write_text(json.dumps(run(result(0.9, onnxruntime=20.0), result(3.0, packed))))
    assert plot.main([str(path), "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {"speedup.png", "peak.png"}


def test_cells_that_users_write_are_timed_beside_a_loop_that_gives_the_same(capsys):
    for cell in map(custom_cells.CELLS.get, ("augru", "indrnn", "rnn")):
        calls = custom_cells.contenders(cell, (3, 2, 8), training=True)
        assert_same(calls["compiled"](), calls["loop"](), torch.float32)
    custom_cells.main(["--only", "^rnn$", "--threads", "1", "--seconds", "0.01"])
    assert re.search(r"rnn 64x16x512/training/1 +\d+\.\d\d \(.*of FusedRNN", capsys.readouterr().out)
