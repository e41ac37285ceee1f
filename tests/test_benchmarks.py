"""The benchmark without its clock: its shapes can be built, everybody computes the same, and what it says follows."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import bench
import measure
import pytest
import report
import roof
import torch
from peers import PEERS, Work, contender, error, installed, tensors
from shapes import CALLS, SHAPES, Shape

from fusedrnn import kernels

ROOT = Path(__file__).parent.parent


def small(shape: Shape) -> Shape:
    """The same work with fewer steps and units."""
    H = min(shape.H, 8)
    return dataclasses.replace(
        shape, T=min(shape.T, 12), N=min(shape.N, 3), I=min(shape.I, 5), H=H, proj=min(shape.proj, H // 2)
    )


SMALL = list({shape.name: shape for shape in map(small, SHAPES)}.values())


def test_names_are_told_apart():
    names = [shape.name for shape in SHAPES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("shape", SMALL, ids=lambda s: s.name)
def test_whoever_can_compute_a_shape_agrees_with_float64(shape, call):
    work = Work(shape)
    with torch.set_grad_enabled(call == "training"):
        exact = tensors(contender(work.double(), "torch", call)())
        found = {who: contender(work, who, call) for who in ("fusedrnn", *PEERS)}
        errors = {who: error(tensors(run()), exact) for who, run in found.items() if run}
    assert {"fusedrnn", "torch"} <= set(errors)
    assert ("loop" in errors) == shape.loop
    assert all(value <= bench.AGREEMENT[shape.dtype] for value in errors.values()), errors


@pytest.mark.skipif(not installed("onnxruntime"), reason="onnxruntime and onnx are not installed")
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
    monkeypatch.setattr(bench, "SHAPES", [Shape("GRU", 5, 2, 3, 4, "")])
    monkeypatch.setattr(bench, "plan", lambda args: [("results", bench.SHAPES[0], "forward", 1)])
    assert bench.main(["--out", str(tmp_path / "out.json"), "--peers", "torch"]) == 1
    assert "fusedrnn is off by 0.01" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["results"] == []


def test_contenders_are_timed_in_turns_until_the_time_is_over():
    calls, time = [], iter(range(1000))
    clock = lambda call, count: [call(), next(time)][1] * 1e-3 + measure.WARM  # noqa: E731
    who = {name: lambda name=name: calls.append(name) for name in "ab"}
    samples = measure.alternate(who, seconds=0, clock=clock, least=4)
    assert {name: len(s) for name, s in samples.items()} == {"a": 4, "b": 4}
    rounds = ["".join(calls[k : k + 2]) for k in range(0, len(calls), 2)]
    assert set(rounds) == {"ab", "ba"}


def test_a_long_first_call_is_a_sample_and_a_short_one_is_not():
    durations = {"short": 0.01, "long": 1.0}
    made = []
    clock = lambda call, count: [made.append((call(), count)), durations[call()]][1]  # noqa: E731
    samples = measure.alternate({who: lambda who=who: who for who in durations}, 0, clock=clock, least=2)
    assert {who: len(s) for who, s in samples.items()} == {"short": 2, "long": 2}
    assert [who for who, _ in made].count("long") == 2
    assert [who for who, _ in made].count("short") == 3


def test_the_peak_is_that_of_the_rounds_in_which_the_layer_was_timed(monkeypatch):
    """In each round the best size counts; of the rounds, the median."""
    seconds = [2e-9 * size**3 for size in measure.SIZES]  # at 1 GFLOP/s
    samples = {size: [s / 10, s / 30, s / 20] for size, s in zip(measure.SIZES, seconds, strict=True)}
    samples[1024][2] /= 2
    assert measure.peak_in(samples) == pytest.approx(30)

    monkeypatch.setattr(measure, "gemm_peak", lambda *args: 1.0)
    monkeypatch.setattr(measure, "SIZES", (8, 16))
    with_whom = []

    def alternate(contenders, seconds):
        with_whom.append(list(contenders))
        return {who: [1e-9, 1e-9] for who in contenders}

    monkeypatch.setattr(measure, "alternate", alternate)
    large = next(s for s in SHAPES if s.nears_peak)
    timed = [bench.Timed(shape, ["torch"]) for shape in (dataclasses.replace(large, T=1), small(large))]
    peaks = [t.run("forward", torch.get_num_threads(), 0)["peak"] for t in timed]
    assert with_whom == [["fusedrnn", "torch", 8, 16], ["fusedrnn", "torch"]]
    assert peaks == [pytest.approx(2 * 16**3), 1.0]


def test_flops_count_the_rows_that_are_there():
    shape = Shape("LSTM", 10, 2, 3, 4, "", layers=2, directions=2)
    assert shape.flops("forward") == 2 * 20 * 2 * 4 * 4 * ((3 + 4) + (8 + 4))
    assert shape.flops("training") == 3 * shape.flops("forward")
    ragged = dataclasses.replace(shape, T=30, form="packed")
    assert ragged.lengths().tolist() in ([10, 30], [30, 10])
    assert ragged.flops("forward") == 2 * shape.flops("forward")


def result(speedup, shape=SHAPES[0], ms=1.0, **contenders):
    def timed(value):
        spread = 0.98, 1.0, 1.02
        return {"ms": [ms * k for k in spread], "error": 1e-7, "speedup": [value * k for k in spread]}

    found = {"fusedrnn": timed(1.0)} | {who: timed(value) for who, value in {"torch": speedup, **contenders}.items()}
    shape = {"name": shape.name, "call": "forward", "threads": 1, "shape": dataclasses.asdict(shape)}
    return shape | {"gflop": 1.0, "peak": 2000.0, "contenders": found}


def run(*results, cpu="a processor"):
    return {"machine": {"cpu": cpu}, **{section: [] for section in report.SECTIONS}, "results": list(results)}


@pytest.mark.parametrize(
    "speedup, ms, cpu, slower",
    [
        (1.0, 1.5, "a processor", 1),
        (1.4, 1.07, "a processor", 1),
        (1.45, 1.03, "a processor", 0),  # within the noise
        (1.0, 1.0, "a processor", 0),  # torch.nn became faster
        (1.5, 3.0, "a processor", 0),  # the machine became slower
        (1.0, 0.5, "another", 1),
        (2.0, 0.7, "a processor", 0),
    ],
)
def test_compare_flags_a_slowdown_beyond_the_noise(speedup, ms, cpu, slower):
    assert len(report.compare(run(result(speedup, ms=ms), cpu=cpu), run(result(1.5)))) == slower


def test_compare_ignores_what_was_not_timed_before():
    assert report.compare(run(result(0.1), result(1.5, SHAPES[1])), run(result(1.5, SHAPES[1]))) == []


def test_compare_says_when_there_is_nothing_to_compare():
    assert "Nothing to compare" in report.compare(run(result(1.5)), run(result(1.5, SHAPES[1])))[0]


def test_the_summary_marks_what_falls_short():
    lstm = next(s for s in SHAPES if s.name == "LSTM-fp32-100x16x128x128")
    text = report.summary(run(result(0.9, lstm, onnxruntime=1.2), result(1.5, SHAPES[0])))
    (row,) = [r for r in text.splitlines() if r.startswith("LSTM fp32 forward, grid")]
    assert row.split()[-5:] == ["1.00", "1.35", "!0.90", "!1.16", lstm.name]
    (row,) = [r for r in text.splitlines() if "best of all peers" in r]  # one step is not asked for here
    assert row.split()[-2:] == ["1.00", "!0.90"]


def test_the_summary_tells_what_no_program_could_do():
    """Of three that fall short, the roof forbids one; shown is the worst of the others. A mean is judged by that of the
    roofs, in which one step counts as measured."""
    one_step, allowed, forbidden, also = (s for s in SHAPES[:4])
    results = [
        result(6.0, one_step) | {"roof": None},
        result(0.9, allowed) | {"roof": 0.5},
        result(0.8, forbidden) | {"roof": 0.9},
        result(0.95, also) | {"roof": 0.5},
    ]
    (row,) = [r for r in report.summary(run(*results)).splitlines() if r.startswith("LSTM fp32 forward, grid")]
    roof = (6.0 * 1.8 * (0.8 / 0.9) * 1.9) ** 0.25
    assert row.split()[-4:] == ["!0.90", "1.42", f"{roof:.2f}", allowed.name]
    (row,) = [r for r in report.summary(run(results[2])).splitlines() if r.startswith("LSTM fp32 forward, grid")]
    assert row.split()[-2:] == ["^0.80", "0.89"]
    assert report.at_the_roof(results[1])["contenders"]["fusedrnn"]["ms"] == [0.5] * 3
    assert report.best_peer(report.at_the_roof(result(2.0, openvino=1.5) | {"roof": 0.25})) == 6.0


def test_the_roof_multiplies_and_reads_at_the_pace_of_the_loops(monkeypatch):
    monkeypatch.setattr(roof, "loops", lambda: "compiled")
    monkeypatch.setattr(roof, "operations", lambda dtype, threads: {"float32": 1e9, "bfloat16": 2e9}[dtype] * threads)
    monkeypatch.setattr(roof, "reads", lambda size, threads: 1e9 * threads)
    many, row = Shape("LSTM", 50, 64, 128, 128, ""), Shape("GRU", 50, 1, 16, 32, "", layers=2, directions=2)
    assert roof.milliseconds(many, "forward", 2, 0) == pytest.approx(1e3 * many.flops("forward") / 2e9)
    assert roof.milliseconds(many, "forward", 2, 8e9) == pytest.approx(1e3 * many.flops("forward") / 8e9)
    # of one row, reading W_hh takes longer than to multiply by it: 4 bytes for 2 operations
    weights, passes = 2 * 3 * 32 * 32, 2 * 2
    seconds = passes * 50 * weights * 4 / 1e9 + (row.flops("training") - passes * 50 * weights * 2) / 1e9
    assert roof.milliseconds(row, "training", 1, 0) == pytest.approx(1e3 * seconds)
    half = dataclasses.replace(row, dtype="bfloat16")
    assert roof.milliseconds(half, "training", 1, 0) == pytest.approx(1e3 * seconds / 2)
    assert roof.milliseconds(dataclasses.replace(row, T=1), "forward", 1, 0) is None


@pytest.mark.skipif(kernels._C is None, reason="what compiles the loops compiles the kernels, which are missing")
def test_the_loops_of_the_roof_run(monkeypatch):
    monkeypatch.setattr(roof, "SECONDS", 1e-3)
    for rate in (roof.operations.__wrapped__("bfloat16", 2), roof.reads.__wrapped__(1 << 16, 1)):
        assert 1e8 < rate < 1e14


def test_every_floor_is_about_a_shape_that_is_timed():
    everything = [
        {"call": call, "threads": 1, "shape": dataclasses.asdict(shape)}
        for shape in SHAPES
        for call in bench.calls_of(shape)
    ]
    for floor in report.FLOORS:
        if floor.section == "results":
            assert any(map(floor.select, everything)), floor.work
    assert {*bench.MEMORY, bench.CONTENTION} <= {shape.name for shape in SHAPES}


@pytest.mark.parametrize("script", ["bench", "plot"])
def test_help(script, capsys):
    with pytest.raises(SystemExit, match="0"):
        pytest.importorskip(script, reason="matplotlib is not installed").main(["--help"])
    assert "usage:" in capsys.readouterr().out


def test_a_small_run_from_end_to_end(tmp_path):
    pytest.importorskip("tqdm")
    command = [sys.executable, ROOT / "benchmarks" / "bench.py", "--only", "^LSTM-fp32-1x1x128x128/forward/1$"]
    command += ["--threads", "1", "--seconds", "0.01", "--out", tmp_path / "out.json"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert [report.key(r) for r in found["results"]] == ["LSTM-fp32-1x1x128x128/forward/1"]
    assert re.search(r"LSTM fp32 forward, grid", done.stdout)
    assert "fusedrnn" in found["results"][0]["contenders"]


def test_results_can_be_drawn(tmp_path):
    plot = pytest.importorskip("plot", reason="matplotlib is not installed")
    packed = next(shape for shape in SHAPES if shape.form == "packed")
    found = run(result(0.9, onnxruntime=20.0), result(3.0, packed))
    (tmp_path / "run.json").write_text(json.dumps(found))
    assert plot.main([str(tmp_path / "run.json"), "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {"speedup.png", "practice.png", "peak.png"}
