"""What the benchmarks of a GPU do can be rehearsed on a CPU: who computes what, what is kept, what is said of it."""

import json
import os
import subprocess
from pathlib import Path

import episodes
import gpu
import pytest
import torch
from tolerances import assert_same
from torch import nn
from twins import pair

SCRIPT = Path(__file__).parent.parent / "benchmarks/gpu.sh"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "gpu.json"


@pytest.mark.parametrize("plain", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("way", [episodes.split, episodes.step_by_step])
def test_every_way_to_do_resets_gives_the_same(plain, way):
    ours, theirs = pair(plain, 3, 4)
    x, reset = torch.randn(9, 5, 3, dtype=torch.float64), torch.rand(9, 5) < 0.3
    reset[:, 0], reset[0, 1:3] = False, True
    assert_same(way(theirs, x, reset)[0], ours(x, reset=reset)[0])


@pytest.mark.parametrize("call", gpu.CALLS)
@pytest.mark.parametrize("variant", gpu.VARIANTS)
@pytest.mark.parametrize("cell, dtype", [("LSTM", "ieee"), ("GRU", "ieee"), ("RNN", "tf32")])
def test_all_contenders_agree_with_float64(cell, dtype, variant, call):
    found = gpu.measure(cell, dtype, 8, 3, variant, call, "cpu", T=40)["contenders"]
    others = {"reset": {"torch", "loop"}, "tiers": set(gpu.TIERS)}.get(variant, {"torch"})
    assert set(found) == {"fusedrnn", *others}
    assert all(c["error"] < 1e-5 and c["ms"] > 0 for c in found.values())
    assert "FUSEDRNN_PLAN" not in os.environ


def test_a_tier_that_cannot_hold_a_layer_is_left_out(monkeypatch):
    def planned(module, tier, x):
        if tier == "block":
            raise ValueError("FUSEDRNN_PLAN=block: this device cannot hold this layer so")
        return module(x)

    monkeypatch.setattr(gpu, "planned", planned)
    found = gpu.measure("GRU", "ieee", 8, 3, "tiers", "forward", "cpu", T=4)["contenders"]
    assert found.pop("block") is None and all(found.values())


def test_every_shape_is_of_a_cell_a_dtype_and_a_variant_that_there_are():
    shapes = list(gpu.shapes())
    grid = {shape for shape in shapes if shape[4] == ""}
    assert len(grid) == len(gpu.CELLS) * len(gpu.DTYPES) * len(gpu.WIDTHS) * len(gpu.ROWS)
    assert {v for *_, v in shapes} == set(gpu.VARIANTS)
    for cell, dtype, H, N, _ in shapes:
        assert cell in gpu.CELLS and dtype in gpu.DTYPES and H >= 64 and N >= 1


def test_what_was_measured_is_not_measured_again(out, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "rehearsed", lambda: [("LSTM", "ieee", 8, N, "") for N in (2, 3)])
    calls = []
    monkeypatch.setattr(
        gpu, "measure", lambda *work, measure=gpu.measure, **k: calls.append(work) or measure(*work, **k)
    )
    command = ["bench", "--rehearse", "--out", str(out), "--seconds"]
    gpu.main([*command, "-1"])
    assert calls == [] and "4 shapes are left" in capsys.readouterr().out
    gpu.main([*command, "60"])
    gpu.main([*command, "60"])
    assert len(calls) == len(set(calls)) == 4
    assert "LSTM ieee forward" in capsys.readouterr().out
    assert [r["call"] for r in json.loads(out.read_text())["results"]] == ["forward", "training"] * 2


def test_what_fails_or_never_returns_is_kept_and_not_tried_again(out, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "rehearsed", lambda: [("LSTM", "ieee", 8, 2, "")])

    def killed(*work, **options):
        if work[-1] == "forward":
            raise RuntimeError("out of memory")
        raise SystemExit

    monkeypatch.setattr(gpu, "measure", killed)
    with pytest.raises(SystemExit):
        gpu.bench(out, 60, rehearse=True)
    gpu.bench(out, 60, rehearse=True)
    said = capsys.readouterr().out
    assert "'forward']: out of memory" in said and "'training']: did not return" in said


def result(cell, dtype, H, variant="", call="forward", **milliseconds):
    contenders = {who: {"ms": ms, "error": 1e-3, "bytes": 100} for who, ms in milliseconds.items()}
    shape = {"cell": cell, "dtype": dtype, "H": H, "N": 8, "T": 100, "variant": variant, "call": call}
    return shape | {"contenders": contenders}


def test_the_table_marks_what_falls_short():
    def row(*results):
        return gpu.table(list(results)).splitlines()[1].split()

    assert row(result("LSTM", "bf16", 64, fusedrnn=1, torch=2))[:6] == "LSTM bf16 forward 1 1.5 2.00x".split()
    worst = row(result("LSTM", "bf16", 64, fusedrnn=1, torch=0.6), result("LSTM", "bf16", 128, fusedrnn=1, torch=1.5))
    assert worst[3:9] == ["2", "1.5", "!0.95x", "!0.60x", "H=64", "N=8"]
    assert row(result("LSTM", "fp16", 64, fusedrnn=1, torch=1.2))[4:6] == ["1.0", "1.20x"]
    assert row(result("GRU", "tf32", 64, call="training", fusedrnn=1, torch=1.2))[4:6] == ["1.3", "!1.20x"]
    assert row(result("GRU", "tf32", 64, "reset", fusedrnn=1, torch=4))[2:7] == "reset split forward 1 5.0".split()


def test_the_table_names_a_tier_that_would_have_been_faster():
    good = result("LSTM", "bf16", 64, "tiers", fusedrnn=1.05, block=1.0, grid=3)
    poor = result("GRU", "bf16", 64, "tiers", fusedrnn=3.0, block=1.0, grid=3)
    said = gpu.best_tiers([good, poor]).splitlines()
    assert len(said) == 2 and "GRU" in said[1] and "30.00 us a step, but block 10.00, grid 30.00" in said[1]
    assert gpu.best_tiers([good]) == ""


def test_results_can_be_drawn(out, tmp_path):
    plot = pytest.importorskip("gpu_plot", reason="matplotlib is not installed")
    results = [result("LSTM", "bf16", H, call=call, fusedrnn=1, torch=2) for H in (64, 128) for call in gpu.CALLS]
    out.write_text(json.dumps({"machine": {"gpu": "a GPU"}, "results": results}))
    assert plot.main([str(out), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "gpu.png").stat().st_size > 10_000


def test_small_layers_of_every_kind_are_touched():
    gpu.main(["touch", "--rehearse"])


def test_without_a_gpu_nothing_is_measured(out):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match="no GPU is in sight"):
        gpu.main(["bench", "--out", str(out)])


def script(tmp_path, *arguments, python="#!/bin/sh\necho the tests say so\n", **variables):
    """Runs gpu.sh with a python that does nothing."""
    fake = tmp_path / "python"
    fake.write_text(python)
    fake.chmod(0o755)
    variables = {"OUT": str(tmp_path / "out"), "PYTHON": str(fake), **variables}
    return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, env=os.environ | variables)


def test_the_script_lists_its_parts_and_refuses_others(tmp_path):
    done = script(tmp_path, "--dry")
    parts = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("== ")]
    assert parts[:2] == ["build", "test_cuda"] and parts[-6:-4] == ["memcheck", "racecheck"]
    assert {"test_scan", "test_modules", "test_options", "test_parity"} < set(parts)
    assert done.returncode == 0 and not (tmp_path / "out").exists()
    assert script(tmp_path, "everything").returncode == 2
    assert "LIMIT=570" in script(tmp_path, "--help").stdout


def test_the_script_does_nothing_twice_but_what_failed(tmp_path):
    first = script(tmp_path, "test", "plot", python='#!/bin/sh\necho ran; case "$*" in *scan*) exit 1; esac\n')
    assert "== plot" in first.stdout
    assert first.returncode == 1 and "== test_scan FAILED" in first.stdout and "== test_cuda passed" in first.stdout
    log = (tmp_path / "out/gpu.txt").read_text()
    assert "ran\n== test_scan FAILED\n" in log and "ran\n== test_cuda passed\n" in log
    second = script(tmp_path, "test")
    assert second.returncode == 0 and second.stdout.count("the tests say so") == 1
    assert "== test_scan passed" in second.stdout and "== test_cuda: done before" in second.stdout
    assert script(tmp_path, "test").stdout.count("done before") == second.stdout.count("==") - 1


def test_the_script_stops_when_its_time_is_over(tmp_path):
    late = script(tmp_path, "test", LIMIT="9")
    assert late.returncode == 1 and "no time is left" in late.stdout and "the tests say so" not in late.stdout
