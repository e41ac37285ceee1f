"""A rehearsal of the GPU runs without one: gpu.sh with a dummy python, and the GPU benchmarks on a CPU."""

import json
import os
import subprocess
from pathlib import Path

import bench
import gpu
import pytest
import timing
import torch
from shapes import SHAPES

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.sh"


def script(tmp_path, *arguments, python="echo the python says so", **variables):
    """Runs gpu.sh with another python."""
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\n{python}\n")
    fake.chmod(0o755)
    variables = {"KEEP": str(tmp_path / "keep"), "OUT": str(tmp_path / "out"), "PYTHON": str(fake), **variables}
    return subprocess.run(["bash", SCRIPT, *arguments], capture_output=True, text=True, env=os.environ | variables)


def test_the_script_lists_its_commands_and_refuses_other_parts(tmp_path):
    done = script(tmp_path, "--dry")
    commands = [line for line in done.stdout.splitlines() if line.startswith("== ")]
    names = [command.split()[1].rstrip(":") for command in commands]
    tiers = ("block", "cluster", "grid", "stepwise")
    assert names[:7] == ["info", "clusters", *(f"tier-{tier}" for tier in tiers), "shapes"]
    assert names[11:16] == [*(f"test-{tier}" for tier in tiers), "test-rest"]
    assert names[16:] == ["memcheck", "racecheck", "synccheck", "bench", "plot"]
    assert all(f"tests/test_{name}.py" in commands[15] for name in ("scan", "modules", "options", "parity"))
    assert done.returncode == 0 and not (tmp_path / "keep").exists() and not (tmp_path / "out").exists()
    assert script(tmp_path, "everything").returncode == 2
    assert "LIMIT=300" in script(tmp_path, "--help").stdout


def test_what_fails_does_not_stop_the_rest_and_is_all_that_is_done_again(tmp_path):
    done = script(tmp_path, "first", "shapes", python='echo I was here; case "$*" in *clusters) exit 1; esac')
    assert done.returncode == 1 and done.stdout.count("I was here") == 7 and done.stdout.count("== FAILED") == 1
    kept = {path.stem: path.read_text() for path in (tmp_path / "out").glob("*.txt")}
    assert len(kept) == 7 and "I was here" in kept["tier-grid"] and "== FAILED" in kept["clusters"]
    again = script(tmp_path, "first", "shapes", python="echo again")
    assert again.returncode == 0 and again.stdout.count("again") == 1 and again.stdout.count("I was here") == 6
    assert script(tmp_path, "shapes", python="echo anew", FRESH="1").stdout.count("anew") == 1


def test_a_command_that_takes_too_long_is_stopped(tmp_path):
    late = script(tmp_path, "bench", python="exec sleep 60", LIMIT="0.2")
    assert late.returncode == 1 and "== FAILED" in late.stdout


def test_a_build_without_cuda_is_not_brought_along(tmp_path):
    with pytest.raises(AssertionError, match="it was built without CUDA"):
        gpu.main(["imports"])


def test_the_questions_to_a_gpu_are_answered_by_a_stand_in(tmp_path, capsys):
    gpu.main(["tier", "--device", "cpu"])
    assert capsys.readouterr().out.count("off by") == 3
    small = ["--device", "cpu", "--count", "1", "--steps", "3", "--seconds", "0.001"]
    gpu.main(["shapes", *small, "--simulated", "132", "232448", "90", "--out", str(tmp_path / "shapes.json")])
    rows = json.loads((tmp_path / "shapes.json").read_text())
    assert len(rows) == 4 == capsys.readouterr().out.count("H=64 N=16")
    assert all(len(row["us"]) == len(row["estimates"]) == 2 for row in rows)
    gpu.main(["once", "--device", "cpu", "--hidden", "8", "--call", "training"])


def test_the_shapes_of_a_gpu_are_compared_and_timed_beside_torch():
    args = bench.options(["--seconds", "0.001"])
    shape = next(shape for shape in SHAPES["cuda"] if shape.form == "reset" and shape.dtype == "bfloat16")
    results = bench.compare(bench.dataclasses.replace(shape, T=9, N=2, I=3, H=4), "training", 1, args)
    assert set(results["contenders"]) == {"fusedrnn", "torch"}


class Event:
    """Of a GPU on which every recorded call takes 3 ms."""

    clock = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.time = Event.clock

    def elapsed_time(self, end):
        return end.time - self.time


def test_the_clock_of_a_gpu_leaves_out_what_it_does_to_the_cache(monkeypatch):
    def advance(milliseconds):
        Event.clock += milliseconds

    class Flush:
        def zero_(self):
            advance(100.0)

    synchronized = []
    monkeypatch.setattr(torch, "empty", lambda *args, **options: Flush())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: synchronized.append(Event.clock))
    assert timing.cuda_clock(lambda: advance(3.0), 4) == pytest.approx(3e-3)
    assert len(synchronized) == 1


def test_without_a_gpu_nothing_is_measured(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match="2"):
        bench.main(["--device", "cuda"])
    assert "torch finds no GPU" in capsys.readouterr().err
    assert bench.main(["--device", "cuda", "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) > 200 and all("contention" not in line for line in listed)
