"""A rehearsal of the GPU runs without one: .ci/gpu with a dummy python, and the GPU benchmarks on a CPU."""

import os
import subprocess
from pathlib import Path

import bench
import pytest
import timing
import torch
from shapes import SHAPES

SCRIPT = Path(__file__).parent.parent / ".ci" / "gpu"


def script(tmp_path, *arguments, python="#!/bin/sh\necho the python says so\n", **variables):
    """Runs .ci/gpu with another python."""
    fake = tmp_path / "python"
    fake.write_text(python)
    fake.chmod(0o755)
    variables = {"OUT": str(tmp_path / "out"), "PYTHON": str(fake), **variables}
    return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, env=os.environ | variables)


def test_the_script_lists_its_commands_and_refuses_other_parts(tmp_path):
    done = script(tmp_path, "--dry")
    commands = [line for line in done.stdout.splitlines() if line.startswith("== ")]
    assert "setup.py" in commands[0] and "test_cuda.py" in commands[1] and "plot.py" in commands[-1]
    assert all(f"tests/test_{name}.py" in commands[1] for name in ("scan", "modules", "options", "parity"))
    assert [c.split()[3] for c in commands if "compute-sanitizer" in c] == ["memcheck", "racecheck", "synccheck"]
    assert "bench.py --device cuda" in commands[-2]
    assert done.returncode == 0 and not (tmp_path / "out").exists()
    assert script(tmp_path, "everything").returncode == 2
    assert "LIMIT=3600" in script(tmp_path, "--help").stdout


def test_what_fails_does_not_stop_the_rest_and_is_logged(tmp_path):
    python = '#!/bin/sh\necho I was here; case "$*" in *"-m pytest"*) exit 1; esac\n'
    done = script(tmp_path, "test", "plot", python=python)
    assert done.returncode == 1 and done.stdout.count("I was here") == 2
    log = (tmp_path / "out" / "gpu.txt").read_text()
    assert log.count("I was here") == 2 and log.count("== FAILED") == 1
    assert script(tmp_path, "plot").returncode == 0


def test_a_command_that_takes_too_long_is_stopped(tmp_path):
    late = script(tmp_path, "bench", python="#!/bin/sh\nexec sleep 60\n", LIMIT="0.2")
    assert late.returncode == 1 and "== FAILED" in late.stdout


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
